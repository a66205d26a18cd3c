"""One wrong value in what was written to disk: snapshots and baselines as a fault, or an attacker, leaves them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np

from mlsecd.detectors.base import Section
from mlsecd.windows import packing

ODD = (None, -1, 2**63, float("inf"), float("nan"), "x", [], {}, b"", -(10**6), 1e300, True)
Path = tuple[Any, ...]


def snapshots(blob: bytes, count: int, seed: int) -> Iterator[tuple[Path, bytes]]:
    """Some versions of a snapshot with one wrong value each, and where it is."""
    version, state = msgspec.msgpack.decode(blob, ext_hook=packing._decode, type=tuple[int, Any])
    rng = random.Random(seed)
    alike: dict[Path, list[Path]] = {}  # places of one kind: of a thousand accounts as many as of one counter
    for path in _places(state):
        alike.setdefault(tuple(part if isinstance(part, str) else 0 for part in path), []).append(path)
    for _ in range(count):
        path = rng.choice(rng.choice(list(alike.values())))
        try:
            yield path, packing.pack(version, _put(state, path, lambda value: _other(value, rng)))
        except (OverflowError, msgspec.MsgspecError):
            continue  # no snapshot can hold that


def sections(section: Section, count: int, seed: int) -> Iterator[tuple[Any, Section]]:
    """Some versions of a section with one wrong array or header value each, and which."""
    rng = random.Random(seed)
    places = [path for path in _places(section.header) if path]
    for _ in range(count):
        if rng.random() < 0.3 and places:
            path = rng.choice(places)
            yield path, Section(_put(section.header, path, lambda value: _other(value, rng)), section.arrays)
        elif section.arrays:
            name = rng.choice(sorted(section.arrays))
            array = _other_array(section.arrays[name], rng)
            others = {key: one for key, one in section.arrays.items() if key != name}
            yield name, Section(section.header, others if array is None else others | {name: array})


def has_no_new_nan(before: Section, after: Section) -> bool:
    """Whether no array has got one."""
    return not any(
        array.dtype.kind == "f" and np.isnan(array).any() and before.arrays[name] is not array
        for name, array in after.arrays.items()
    )


def _places(value: Any, path: Path = ()) -> Iterator[Path]:
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*path, key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _places(item, (*path, i))


def _put(value: Any, path: Path, change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(value)
    if isinstance(value, dict):
        return {key: _put(item, path[1:], change) if key == path[0] else item for key, item in value.items()}
    return [_put(item, path[1:], change) if i == path[0] else item for i, item in enumerate(value)]


def _other(value: Any, rng: random.Random) -> Any:
    if isinstance(value, np.ndarray) and rng.random() < 0.8:
        made = _other_array(value, rng)
        return [] if made is None else made
    if isinstance(value, list | tuple) and rng.random() < 0.5:
        return list(value)[:-1] if rng.random() < 0.5 else [*value, *value]
    return rng.choice(ODD)


def _other_array(array: Any, rng: random.Random) -> Any:
    """Another array, ``None`` for none."""
    whole = array.astype(float)
    spoilt = whole.copy()
    if spoilt.size:
        spoilt.reshape(-1)[rng.randrange(spoilt.size)] = rng.choice([np.nan, np.inf, -np.inf])
    choices = (None, array[:0], whole * np.nan, array.reshape(-1)[:-1], array[None], spoilt, -np.abs(whole) - 1.0)
    return rng.choice(choices)
