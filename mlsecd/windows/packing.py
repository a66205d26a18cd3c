"""Snapshots as bytes: MessagePack with numpy arrays, versioned, never pickle."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlsecd.errors import StateError

__all__ = ["pack", "unpack"]

_ARRAY = 1  # MessagePack extension code of a numpy array
_DTYPES = frozenset("?bBhHiIlLqQefd")  # numbers only: an object array could not be packed, or trusted


def _encode(value: object) -> msgspec.msgpack.Ext:
    if isinstance(value, np.ndarray) and value.dtype.char in _DTYPES:
        header = msgspec.msgpack.encode((value.dtype.str, value.shape))
        return msgspec.msgpack.Ext(_ARRAY, len(header).to_bytes(2, "little") + header + value.tobytes())
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot pack {type(value).__name__}")


def _decode(code: int, data: memoryview) -> NDArray[Any]:
    if code != _ARRAY:
        raise StateError(f"unknown extension {code} in a snapshot")
    size = int.from_bytes(data[:2], "little")
    dtype, shape = msgspec.msgpack.decode(data[2 : 2 + size], type=tuple[str, tuple[int, ...]])
    if np.dtype(dtype).char not in _DTYPES:
        raise StateError(f"unexpected dtype {dtype} in a snapshot")
    return np.frombuffer(data[2 + size :], dtype).reshape(shape).copy()


def pack(version: int, state: Any) -> bytes:
    """``state`` (plain containers, numbers, strings, numeric arrays) as bytes of this version."""
    return msgspec.msgpack.encode((version, state), enc_hook=_encode)


def unpack(version: int, blob: bytes) -> Any:
    """What :func:`pack` packed.

    Raises
    ------
    StateError
        The bytes are damaged or of another version.
    """
    try:
        found, state = msgspec.msgpack.decode(blob, ext_hook=_decode, type=tuple[int, Any])
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise StateError(f"a snapshot cannot be read: {error}") from error
    if found != version:
        raise StateError(f"a snapshot is of version {found}, this is version {version}")
    return state
