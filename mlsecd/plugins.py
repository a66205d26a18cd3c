"""Finds detectors and sources: one module, one class, named by the module's ``DETECTOR`` or ``SOURCE``."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import ModuleType
from typing import Any

import mlsecd.detectors
import mlsecd.sources
from mlsecd.detectors.base import Detector
from mlsecd.errors import MlsecdError
from mlsecd.sources.base import Source

__all__ = ["detectors", "sources"]


def _find(package: ModuleType, attribute: str) -> dict[str, Any]:
    """Classes by name, in order of name; a name that two modules claim is an error.

    A module whose name begins with an underscore is somebody's helper, and loaded by whom it helps.
    """
    found: dict[str, Any] = {}
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if info.name.rpartition(".")[2].startswith("_"):
            continue
        cls = getattr(importlib.import_module(info.name), attribute, None)
        if cls is None:
            continue
        if cls.name in found:
            raise MlsecdError(f'two modules claim the name "{cls.name}": {found[cls.name].__module__}, {info.name}')
        found[cls.name] = cls
    return dict(sorted(found.items()))


@functools.cache
def detectors() -> dict[str, type[Detector]]:
    """Every detector in the house, by name."""
    return _find(mlsecd.detectors, "DETECTOR")


@functools.cache
def sources() -> dict[str, type[Source]]:
    """Every source in the house, by name."""
    return _find(mlsecd.sources, "SOURCE")
