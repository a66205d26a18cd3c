"""What mlsecd keeps of a text: three keyed sketches that say how alike two texts are, and not what they say.

This is the only place where they are defined; ``tests/taps/test_sketch.py`` holds test vectors, so that another
language can make the same. Standard library only; numpy, where it is there, is faster and gives the same bits.

The text is first made plain (:func:`plain`): NFKC, lower case, runs of white space as one space, and of more
than 2,048 characters the first and the last 1,024. Then:

vector
    64 numbers: each three characters in a row add +1 or -1 to one coordinate, and the whole is scaled to length
    1. The cosine of two vectors tells how alike two texts are in wording; it changes smoothly.
minhash
    32 slots over runs of three words: the share of equal slots (:func:`similarity`) estimates how many of them two
    texts share. It finds copies with changes; -1 is a slot that no run fell into.
template
    A hash of the first eight words, words with a digit replaced by ``#``: equal for texts that a program made from
    one form. A text of fewer words is its own template.

The key keeps an outsider from trying words against a sketch. It does not make a sketch a secret: a vector of a very
short text, beside the key, gives the text away. Records are therefore handled as what they are: data about people.
"""

from __future__ import annotations

import re
import struct
import unicodedata
from hashlib import blake2b
from math import isqrt, sqrt
from operator import xor
from typing import Any, Final, NamedTuple

np: Any
try:
    import numpy as np
except ImportError:  # a server need not have it
    np = None

__all__ = ["DIMENSIONS", "MAX_CHARACTERS", "SLOTS", "Sketch", "Sketcher", "plain", "similarity"]

DIMENSIONS: Final = 64
SLOTS: Final = 32
MAX_CHARACTERS: Final = 2_048

_HALF: Final = MAX_CHARACTERS // 2
_RUN: Final = 3  # characters of a vector's item, words of a minhash's
_TEMPLATE_WORDS: Final = 8
_EMPTY: Final = -1
_WORD: Final = re.compile(r"\w{1,24}")  # longer words (text without spaces, base64) come in pieces
_PACK: Final = struct.Struct(f"<{DIMENSIONS}f").pack


class Sketch(NamedTuple):
    """What is kept of one text; as a record's ``input_features``, ``sketch`` and ``template``."""

    vector: bytes  # 64 little-endian float32 of length 1, or zeros for a text of fewer than three characters
    minhash: list[int]  # 32 numbers below 2**32, or -1
    template: str  # 16 hex digits; "" for a text without words


class Sketcher:
    """Makes sketches with one key: only those of one key can be compared.

    Parameters
    ----------
    key
        The host's (or fleet's) secret, at most 64 bytes: the content of ``id.key``. Empty gives sketches that
        anyone can make.
    """

    def __init__(self, key: bytes) -> None:
        self._key = blake2b(b"sketch", key=key, digest_size=32, person=b"mlsecd.sketch.1").digest()
        # Tabulation hashing: a table for each place of a run, of 7 bits a character (one bit is the sign).
        self._tables = [bytes(byte & 127 for byte in self._stream(place)) for place in range(_RUN)]
        self._runs = blake2b(digest_size=8, key=self._key, person=b"run")  # copied: keying anew costs twice as much
        self._arrays = [np.frombuffer(table, np.uint8) for table in self._tables] if np is not None else []

    def _stream(self, place: int) -> bytes:
        """256 keyed bytes."""
        parts = [blake2b(bytes((place, part)), key=self._key, person=b"table").digest() for part in range(4)]
        return b"".join(parts)

    def sketch(self, text: str) -> Sketch:
        """All three; the text may be of any length."""
        text = plain(text)
        words = _WORD.findall(text)
        return Sketch(self._vector(text), self._minhash(words), self._template(words))

    def vector(self, text: str) -> bytes:
        """The vector alone: 256 bytes."""
        return self._vector(plain(text))

    def _vector(self, text: str) -> bytes:
        counts = self._counts(_units(text))
        sums = [plus - minus for plus, minus in zip(counts[::2], counts[1::2], strict=True)]
        square = sum(value * value for value in sums)
        norm = sqrt(square) if isqrt(square) else 1.0
        return _PACK(*(value / norm for value in sums))

    def _counts(self, units: bytes) -> list[int]:
        """How often each of the 128 values (coordinate, sign) comes, int[128]."""
        if np is not None:
            codes = np.frombuffer(units, np.uint8)
            first, second, third = self._arrays
            hashed = first[codes[:-2]] ^ second[codes[1:-1]] ^ third[codes[2:]]
            counted: list[int] = np.bincount(hashed, minlength=2 * DIMENSIONS).tolist()
            return counted
        counts = [0] * (2 * DIMENSIONS)
        # A run is hashed by its place's table; translate does that for the whole text at once.
        places = [units[place:].translate(table) for place, table in enumerate(self._tables)]
        for hashed in map(xor, map(xor, places[0], places[1]), places[2]):
            counts[hashed] += 1
        return counts

    def _minhash(self, words: list[str]) -> list[int]:
        slots = [_EMPTY] * SLOTS
        runs = zip(words, words[1:], words[2:], strict=False) if len(words) >= _RUN else [tuple(words)] * bool(words)
        for run in set(runs):
            hasher = self._runs.copy()
            hasher.update(" ".join(run).encode("utf-8", "surrogatepass"))
            hashed = int.from_bytes(hasher.digest(), "little")
            slot, value = hashed % SLOTS, hashed >> 32
            if slots[slot] < 0 or value < slots[slot]:
                slots[slot] = value
        return slots

    def _template(self, words: list[str]) -> str:
        form = " ".join("#" if any(map(str.isdecimal, word)) else word for word in words[:_TEMPLATE_WORDS])
        data = form.encode("utf-8", "surrogatepass")
        return blake2b(data, digest_size=8, key=self._key, person=b"template").hexdigest() if form else ""


def plain(text: str) -> str:
    """The text as it is sketched."""
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:_HALF]} {text[-_HALF:]}"
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)[:MAX_CHARACTERS]  # a character may become 18
    return " ".join(text.lower().split())


def _units(text: str) -> bytes:
    """One byte a UTF-16 unit, its halves folded: of ASCII, the text itself."""
    if text.isascii():
        return text.encode("ascii")
    wide = text.encode("utf-16-le", "surrogatepass")
    return bytes(map(xor, wide[::2], wide[1::2]))


def similarity(one: list[int], other: list[int]) -> float:
    """The estimated share (0..1) of three-word runs that two texts have in common, from their minhashes."""
    held = [(a, b) for a, b in zip(one, other, strict=True) if a >= 0 or b >= 0]
    return sum(a == b for a, b in held) / len(held) if held else 0.0
