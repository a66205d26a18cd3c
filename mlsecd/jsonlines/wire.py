"""What a request line may hold: the type and the limits of each key, and Structs made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from math import nan
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Raw

from mlsecd.records import FIELDS, Field

__all__ = ["MAX_ITEMS", "MAX_LABELS", "MAX_TEXT", "REQUEST", "REQUIRED", "Time", "request_struct", "seconds"]

MAX_TEXT: Final = 256  # characters of a string
MAX_ITEMS: Final = 1024  # items of a list
MAX_LABELS: Final = 2048  # characters of the canonical text of labels
MAX_SECONDS: Final = 366 * 86_400.0  # longer is a wrong unit, and would hold up records, which are ordered by end
END_OF_TIME: Final = 7_289_654_400.0  # 2201-01-01: later is a wrong unit (milliseconds)
REQUIRED: Final = ("ts", "model")

Time = Annotated[float, Meta(ge=0, lt=END_OF_TIME)] | Annotated[datetime, Meta(tz=True)]
_Text = Annotated[str, Meta(max_length=MAX_TEXT)]
_Int = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Whole = Annotated[int, Meta(ge=0, le=2**53)]
_Count = Annotated[float, Meta(ge=0, le=2.0**53)]
_Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]
_Floats = Annotated[list[float], Meta(max_length=MAX_ITEMS)]
_TYPES: Final[dict[Field, Any]] = {
    Field.NUMBER: _Count,
    Field.FLAG: bool,
    Field.TEXT: _Text,
    Field.TEXTS: Annotated[list[_Text], Meta(max_length=MAX_ITEMS)],
    Field.VECTOR: Annotated[bytes, Meta(max_length=4 * MAX_ITEMS)] | _Floats,
    Field.IDS: Annotated[list[_Int], Meta(max_length=MAX_ITEMS)],
}
# The type of each key of a request, null apart. A caller may ask for a negative number of some things: -1
# is "all" or "no limit" in several servers.
REQUEST: Final[dict[str, Any]] = {
    "seq": Annotated[int, Meta(ge=-1, le=2**63 - 1)],
    **{name: _TYPES[kind] for name, kind in FIELDS.items()},
    **dict.fromkeys(("n", "logprobs", "prompt_logprobs", "max_tokens", "temperature"), float),
    "ts": Time,
    "model": Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)],
    "duration_s": _Seconds,
    "ttft_s": _Seconds,
    "predicted": _Int | _Text,
    "scores": _Floats,
    "logit_bias": list[_Int] | _Whole,  # of any length: columns.py cuts it
    "logit_bias_count": _Whole,
    "labels": dict[str, Any],  # of any length: columns.py measures its text
    "kind": Literal["request"],
}


def request_struct(keys: Iterable[str], carried: Sequence[str] = (), *, strict: bool = False) -> Any:
    """A Struct type whose attributes are ``keys``, ``ts`` and ``model``; all but these two may be null.

    Parameters
    ----------
    keys
        Keys out of :data:`REQUEST`.
    carried
        Unknown keys, to be let through as the attributes ``_0``, ``_1``, ...: no stranger's word becomes the
        name of an attribute.
    strict
        Whether other keys are an error.
    """
    held: list[Any] = [(key, REQUEST[key]) for key in REQUIRED]
    held += [(key, REQUEST[key] | None, None) for key in keys if key not in REQUIRED]
    rename = {f"_{at}": key for at, key in enumerate(carried)}
    held += [(name, Raw, None) for name in rename]
    return msgspec.defstruct("Request", held, rename=rename, gc=False, kw_only=True, forbid_unknown_fields=strict)


def seconds(moment: float | datetime) -> float:
    """Seconds since the epoch, NaN for a time out of range."""
    stamp = moment.timestamp() if isinstance(moment, datetime) else moment
    return stamp if 0 <= stamp < END_OF_TIME else nan
