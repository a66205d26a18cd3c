"""Records to JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec

from mlsecd.records import FIELDS, Column, Field, Ragged, Records, RequestBatch, Text, Texts

from .samples import to_dict

__all__ = ["encode"]


def encode(records: Records) -> bytes:
    """JSON lines of these records, each with its newline; what decodes to the same records.

    ``seq`` is kept where the fold gave one; vectors are base64. Text that is not Unicode (a file name of
    stray bytes) is escaped.
    """
    lines = _to_dicts(records) if isinstance(records, RequestBatch) else [to_dict(records)]
    return b"".join(map(_encode_line, lines))


def _encode_line(line: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(line) + b"\n"
    except UnicodeEncodeError:
        return msgspec.json.encode(_escaped(line)) + b"\n"


def _escaped(value: Any) -> Any:
    """The same with lone surrogates written out."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value


def _to_dicts(batch: RequestBatch) -> Iterator[dict[str, Any]]:
    """The rows as JSON objects without what is absent; bytes stand for base64."""
    cells = {name: _cells(name, column) for name, column in batch.columns.items()}
    if "logit_bias_count" in cells:
        ids, counts = cells.get("logit_bias", [None] * len(batch)), cells["logit_bias_count"]
        cells["logit_bias"] = [count if listed is None else listed for listed, count in zip(ids, counts, strict=True)]
        cells["logit_bias_count"] = [
            None if listed is None or len(listed) == count else count for listed, count in zip(ids, counts, strict=True)
        ]
    cells["seq"] = [seq if seq >= 0 else None for seq in batch.seq.tolist()]
    for row in zip(*cells.values(), strict=True):
        yield {name: cell for name, cell in zip(cells, row, strict=True) if cell is not None}


def _cells(name: str, column: Column) -> list[Any]:
    """One JSON value a row, None where absent."""
    match column:
        case Text(codes, values):
            table = [*map(_raw, values), None] if name == "labels" else [*values, None]
            return [table[code] for code in codes.tolist()]
        case Texts():
            return [list(column.at(row)) or None for row in range(len(column))]
        case Ragged() if FIELDS[name] is Field.VECTOR and name != "scores":
            packed, ends = column.values.astype("<f4").tobytes(), (4 * column.offsets).tolist()
            return [packed[start:end] or None for start, end in pairwise(ends)]
        case Ragged():
            values, ends = column.values.tolist(), column.offsets.tolist()
            return [values[start:end] or None for start, end in pairwise(ends)]
        case _ if FIELDS[name] is Field.FLAG:
            return [None if flag < 0 else bool(flag) for flag in column.tolist()]
        case _:
            return list(map(_plain, column.tolist()))


def _raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode("utf-8", "backslashreplace"))


def _plain(number: float) -> float | None:
    """An integer where it is one (200, not 200.0), None for NaN."""
    if number != number:  # noqa: PLR0124 - only NaN differs from itself
        return None
    return int(number) if abs(number) <= 2**53 and number.is_integer() else number
