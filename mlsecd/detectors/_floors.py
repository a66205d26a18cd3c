"""Version floors: how a version is held against them. Three answers: pass, fail, and unknown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["Floor", "below", "judged"]

_Text = Annotated[str, Meta(min_length=1, max_length=128)]


class Floor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The oldest version that is acceptable; update these as bulletins come, and reload."""

    field: Annotated[
        _Text,
        Meta(description="driver_version, container_toolkit_version, ...; of a service: triton, vllm, ollama, ..."),
    ]
    at_least: Annotated[_Text, Meta(description="the first good version")]
    branch: Annotated[str, Meta(max_length=64, description="only for versions that begin so; empty: for all")] = ""
    why: Annotated[str, Meta(max_length=200, description="which hole the older ones have")] = ""
    source: Annotated[str, Meta(max_length=300, description="where the number was read")] = ""


def below(version: str, floor: str) -> bool | None:
    """Whether a version is older than a floor; None where either holds no numbers."""
    have, want = (tuple(map(int, re.findall(r"\d{1,9}", text.split("-")[0])[:8])) for text in (version, floor))
    if not have or not want:
        return None
    width = max(len(have), len(want))
    return have + (0,) * (width - len(have)) < want + (0,) * (width - len(want))


def judged(floors: Iterable[Floor], field: str, version: str | None) -> Iterator[tuple[Floor, bool | None]]:
    """Each row that speaks of this version, and whether it passes; of a branch that no row names, one row and None."""
    rows = [floor for floor in floors if floor.field == field]
    if version is None:
        yield from ((floor, None) for floor in rows[:1])
        return
    spoken = [floor for floor in rows if version.startswith(floor.branch)]
    for floor in spoken:
        old = below(version, floor.at_least)
        yield floor, None if old is None else not old
    if rows and not spoken:
        yield rows[0], None
