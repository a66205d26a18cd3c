"""Decoded request rows to columns.

A *row* is a Struct with one attribute a key, ``None`` where absent. An empty string, list or object says
nothing and reads as absent: an empty ``client`` must not become one account that many share.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, count
from operator import attrgetter
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlsecd.records import FIELDS, I4, I8, Column, Field, Ragged, RequestBatch, Text, Texts

from .wire import MAX_ITEMS, MAX_LABELS, seconds

__all__ = ["Plan", "Unfit", "plan", "to_batch", "with_source"]

Rows = Sequence[Any]
Get = Callable[[Any], Any]
Build = Callable[[Rows, Get], Any]
Plan = tuple[tuple[str, Get, Build], ...]  # (column, how to read a row, how to build it); None for "no row has it"

_ASKED: Final = "logit_bias, counted"  # not a field: to be merged with logit_bias_count
_FLAGS: Final = {None: -1, False: 0, True: 1}
_PROBE: Final = 256  # rows that tell how a column's strings repeat
_UNWRITABLE: Final = " " * (MAX_LABELS + 1)


class Unfit(Exception):  # noqa: N818 - a signal between two modules; no user sees it
    """Some rows cannot be held; nothing was built.

    Parameters
    ----------
    keep
        bool[n]; the rows that can.
    """

    def __init__(self, keep: NDArray[np.bool_]) -> None:
        super().__init__()
        self.keep = keep


def to_batch(rows: Rows, common: Plan, wide: Sequence[int], rare: Plan) -> RequestBatch:
    """All rows as columns.

    Parameters
    ----------
    rows
        Structs, one a request; not empty.
    common
        The plan of the keys that every row has as an attribute.
    wide
        Positions, ascending, of the rows that have every key as an attribute.
    rare
        The plan of the keys, none of them in ``common``, that only wide rows hold.

    Raises
    ------
    Unfit
        Where a row's values cannot be held.
    """
    made = {name: column for name, get, build in common if (column := build(rows, get)) is not None}
    if rare and wide:
        few, where = [rows[at] for at in wide], np.array(wide, np.int64)
        try:
            built = [(name, build(few, get)) for name, get, build in rare]
        except Unfit as error:
            keep = np.ones(len(rows), np.bool_)
            keep[where] = error.keep
            raise Unfit(keep) from None
        made |= {name: _spread(column, where, len(rows)) for name, column in built if column is not None}
    if _ASKED in made:
        asked, stated = made[_ASKED], made.get("logit_bias_count")
        made["logit_bias_count"] = asked if stated is None else np.where(np.isnan(stated), asked, stated)
    return RequestBatch({name: made[name] for name in FIELDS if name in made}, made.get("seq"))


def with_source(batch: RequestBatch, producer: str) -> RequestBatch:
    """The batch with ``source`` where a row has none."""
    if not batch.has("source"):
        source = Text(np.zeros(len(batch), np.int32), (producer,))
    else:
        held = batch.text("source")
        values = held.values if producer in held.values else (*held.values, producer)
        source = Text(np.where(held.codes < 0, np.int32(values.index(producer)), held.codes), values)
    columns = batch.columns | {"source": source}
    return RequestBatch({name: columns[name] for name in FIELDS if name in columns}, batch.seq)


def _time(rows: Rows, get: Get) -> Column:
    try:
        return np.fromiter(map(get, rows), np.float64, len(rows))
    except TypeError:  # some are datetimes, whose range the decoder cannot check
        column = np.fromiter(map(seconds, map(get, rows)), np.float64, len(rows))
        if np.isnan(column).any():
            raise Unfit(~np.isnan(column)) from None
        return column


def _number(rows: Rows, get: Get) -> Column | None:
    column = np.fromiter(map(get, rows), np.float64, len(rows))  # None becomes NaN
    return None if get(rows[0]) is None and np.isnan(column).all() else column


def _seq(rows: Rows, get: Get) -> I8 | None:
    column = np.fromiter((-1 if value is None else value for value in map(get, rows)), np.int64, len(rows))
    return None if (column == -1).all() else column


def _flag(rows: Rows, get: Get) -> Column | None:
    column = np.fromiter(map(_FLAGS.__getitem__, map(get, rows)), np.int8, len(rows))
    return None if (column == -1).all() else column


def _text(rows: Rows, get: Get) -> Column | None:
    """Columns of one string, and of strings that are all different, need no dictionary."""
    values = list(map(get, rows))
    first, n = values[0], len(values)
    repeated = len(set(values[:_PROBE]))
    if repeated == 1 and values.count(first) == n:
        return Text(np.zeros(n, np.int32), (first,)) if first else None
    if repeated == min(n, _PROBE):
        distinct = set(values)
        if len(distinct) == n and distinct.isdisjoint((None, "")):
            return Text(np.arange(n, dtype=np.int32), tuple(values))
    return _coded(values)


def _class(rows: Rows, get: Get) -> Column | None:
    return _coded(list(map(get, rows)))


def _coded(values: Sequence[Any]) -> Text | None:
    codes, texts = _intern(values)
    return Text(codes, texts) if texts else None


def _intern(values: Sequence[Any]) -> tuple[I4, tuple[str, ...]]:
    """Codes of strings and integers (3 is "3"), -1 for None and ""; and the strings, in order of appearance."""
    table: defaultdict[Any, int] = defaultdict(count().__next__)
    codes = np.fromiter(map(table.__getitem__, values), np.int32, len(values))
    merged: dict[str, int] = {}
    recode = [-1 if value in (None, "") else merged.setdefault(str(value), len(merged)) for value in table]
    if len(merged) < len(table):
        codes = np.array(recode, np.int32)[codes]
    return codes, tuple(merged)


def _texts(rows: Rows, get: Get) -> Column | None:
    lists = [value or () for value in map(get, rows)]
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    codes, texts = _intern(list(chain.from_iterable(lists)))
    if (codes < 0).any():  # empty strings
        lengths = np.bincount(np.repeat(np.arange(len(lists)), lengths)[codes >= 0], minlength=len(lists))
    return Texts(_ragged(lengths, codes[codes >= 0]), texts) if texts else None


def _vector(rows: Rows, get: Get) -> Column | None:
    """From bytes (which base64 was) and lists; a list overflows to infinity, which no row may hold."""
    values = list(map(get, rows))
    try:
        packed = bytearray().join(values)  # not bytes, so that the array over it can be written to
        lengths = np.fromiter(map(len, values), np.int64, len(values))
    except TypeError:
        parts = [value if type(value) is bytes else array("f", value or ()) for value in values]
        packed = bytearray().join(parts)
        lengths = np.fromiter((memoryview(part).nbytes for part in parts), np.int64, len(parts))
    if (lengths & 3).any():
        raise Unfit(lengths & 3 == 0)
    flat = np.frombuffer(packed, "<f4")
    wrong = ~np.isfinite(flat)
    if wrong.any():
        raise Unfit(np.bincount(np.repeat(np.arange(len(values)), lengths >> 2)[wrong], minlength=len(values)) == 0)
    return _ragged(lengths >> 2, flat) if len(flat) else None


def _ids(rows: Rows, get: Get) -> Column | None:
    """From lists; of biases, which have no limit, the first MAX_ITEMS. Their count is true, see _asked."""
    lists = [value[:MAX_ITEMS] if type(value) is list else () for value in map(get, rows)]
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    flat = np.fromiter(chain.from_iterable(lists), np.int64, int(lengths.sum()))
    return _ragged(lengths, flat) if len(flat) else None


def _asked(rows: Rows, get: Get) -> Column | None:
    """How many biases, from their list or as stated: who biases every token must not go unseen."""
    counts = (len(value) if type(value) is list else value for value in map(get, rows))
    column = np.fromiter(counts, np.float64, len(rows))
    return None if np.isnan(column).all() else column


def _labels(rows: Rows, get: Get) -> Column | None:
    values = list(map(_canonical, map(get, rows)))
    keep = np.fromiter((value is None or len(value) <= MAX_LABELS for value in values), np.bool_, len(values))
    if not keep.all():
        raise Unfit(keep)
    return _coded(values)


def _canonical(labels: dict[str, Any] | None) -> str | None:
    """JSON with sorted keys, the shortest form."""
    if not labels:
        return None
    try:
        return msgspec.json.encode(labels, order="sorted").decode()
    except (ValueError, OverflowError, RecursionError):
        return _UNWRITABLE


def _ragged(lengths: I8, values: NDArray[Any]) -> Ragged:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Ragged(offsets, values)


def _spread(column: Any, where: I8, n: int) -> Any:
    """A column of some rows as a column of all ``n``, absent elsewhere."""
    match column:
        case Text(codes, values):
            return Text(_spread(codes, where, n), values)
        case Texts(codes, values):
            return Texts(_spread(codes, where, n), values)
        case Ragged():
            lengths = np.zeros(n, np.int64)
            lengths[where] = column.lengths
            return _ragged(lengths, column.values)
        case _:
            full = np.full(n, np.nan if column.dtype == np.float64 else -1, column.dtype)
            full[where] = column
            return full


_BY_KIND: Final[dict[Field, Build]] = {
    Field.NUMBER: _number,
    Field.FLAG: _flag,
    Field.TEXT: _text,
    Field.TEXTS: _texts,
    Field.VECTOR: _vector,
    Field.IDS: _ids,
}
# Those that can raise Unfit come first, so that the others are built once.
_FALLIBLE: Final[tuple[Build, ...]] = (_time, _vector, _labels)
_BUILDS: Final[dict[str, Build]] = {
    **{name: _BY_KIND[kind] for name, kind in FIELDS.items()},
    "ts": _time,
    "predicted": _class,
    "labels": _labels,
    "seq": _seq,
}


def plan(keys: Iterable[str]) -> Plan:
    """What to build from rows that have these keys."""
    steps = [(key, attrgetter(key), _BUILDS[key]) for key in keys if key != "kind"]
    steps += [(_ASKED, get, _asked) for key, get, _ in steps if key == "logit_bias"]
    return tuple(sorted(steps, key=lambda step: step[2] not in _FALLIBLE))
