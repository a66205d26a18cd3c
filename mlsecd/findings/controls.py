"""What the control ids that detectors cite are called: MITRE ATLAS, OWASP LLM Top 10, ISO/IEC 42001 Annex A."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import msgspec

__all__ = ["Catalogue", "catalogues", "names"]

_FILE = Path(__file__).with_name("controls.json")


class Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part of one framework that mlsecd cites, and where it comes from."""

    version: str
    source: str
    licence: str
    names: dict[str, str]


@functools.cache
def catalogues() -> dict[str, Catalogue]:
    """The frameworks by name: ``atlas``, ``owasp``, ``iso42001``. Read from disk once, when first asked."""
    return msgspec.json.decode(_FILE.read_bytes(), type=dict[str, Catalogue])


@functools.cache
def _all_names() -> dict[str, str]:
    return {control: name for catalogue in catalogues().values() for control, name in catalogue.names.items()}


def names(ids: Iterable[str]) -> dict[str, str]:
    """Name by id, in the order asked for.

    Raises
    ------
    KeyError
        An id that the catalogue does not hold: a detector cites what does not exist.
    """
    known = _all_names()
    return {control: known[control] for control in ids}
