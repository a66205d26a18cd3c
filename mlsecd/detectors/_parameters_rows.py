"""What the parameters of each request ask for: columns in, one bit a sign out."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._parameters_distinct import hash_text
from mlsecd.records import RequestBatch

__all__ = [
    "ALLOWED",
    "ASKS",
    "CACHE",
    "CANARY",
    "ECHO",
    "EMBED",
    "HALVING",
    "SAMPLES",
    "SHORT_TOKENS",
    "SIGNS",
    "SWEEP",
    "SWEEP_LONG",
    "UNLISTED",
    "Prompts",
    "asks_outright",
    "canaries_of",
    "has_text",
    "is_embedding",
    "signs_of",
]

Bools = NDArray[np.bool_]
I8 = NDArray[np.int64]

# Sign, as a bit of a row's mask and a place in an account.
SIGNS: Final = (
    "canary",
    "sweep",
    "sweep_long",
    "unlisted",
    "halving",
    "allowed",
    "echo",
    "samples",
    "cache",
    "asks",
    "embed",
)
CANARY, SWEEP, SWEEP_LONG, UNLISTED, HALVING, ALLOWED, ECHO, SAMPLES, CACHE, ASKS, EMBED = range(len(SIGNS))

SHORT_TOKENS: Final = 8  # of output; an oracle needs one, and a few more cost its user nothing
_ALLOWED_MOST: Final = 16  # allowed tokens: a choice among few, not a grammar
_ECHO_LEAST: Final = 2  # prompt logprobs a position: 0 and 1 measure perplexity
_SAMPLES_LEAST: Final = 8  # answers to one request
_ASKING: Final = frozenset({"system_prompt", "repeat_above"})  # ids of the tap's patterns
_OUTRIGHT: Final = _ASKING | {"override", "encoded"}
_CANARY_PREFIX: Final = "canary:"


def _flagged(batch: RequestBatch, wanted: NDArray[np.bool_]) -> Bools:
    """Rows that carry one of these flags; ``wanted`` is bool by code."""
    codes = batch.texts("flags").codes
    out = np.zeros(len(batch), bool)
    if len(codes.values):
        rows = np.repeat(np.arange(len(batch)), codes.lengths)
        out[rows[wanted[codes.values]]] = True
    return out


def is_embedding(batch: RequestBatch) -> Bools:
    """Rows whose route is that of an embedding model."""
    route = batch.text("route")
    known = np.array(["embed" in value.lower() for value in route.values] + [False])
    return known[route.codes]


def signs_of(batch: RequestBatch) -> I8:
    """Signs of each row, int64[n], bit ``SWEEP`` for ``SWEEP`` and so on; 0: nothing of interest was asked for."""
    n = len(batch)
    mask = np.zeros(n, np.int64)
    embedding = is_embedding(batch) if batch.has("route") else np.zeros(n, bool)
    most = batch.number("max_tokens")
    short = np.where(np.isnan(most), batch.number("output_tokens"), most) <= SHORT_TOKENS
    short &= ~embedding
    listed = batch.ragged("logit_bias").lengths > 0
    biased = listed | (batch.number("logit_bias_count") > 0)
    odds = batch.number("logprobs") > 0
    few = (batch.number("allowed_tokens") >= 1) & (batch.number("allowed_tokens") <= _ALLOWED_MOST)
    echo = batch.number("prompt_logprobs") >= _ECHO_LEAST
    many = batch.number("n") >= _SAMPLES_LEAST
    plain = ~(biased | odds | few | many) & ~(batch.number("prompt_logprobs") >= 0)
    for sign, rows in (
        (SWEEP, listed & odds & short),
        (SWEEP_LONG, listed & odds & ~short),
        (UNLISTED, biased & ~listed & odds & short),
        (HALVING, biased & ~odds & short),
        (ALLOWED, few & short),
        (ECHO, echo & short),
        (SAMPLES, many & short),
        (CACHE, plain & (most <= 1) & ~embedding),
        (EMBED, embedding),
    ):
        mask[rows] |= 1 << sign
    if batch.has("flags"):
        values = batch.texts("flags").values
        canary = np.array([value.startswith(_CANARY_PREFIX) for value in values], bool)
        mask[_flagged(batch, canary)] |= 1 << CANARY
        mask[_flagged(batch, np.array([value in _ASKING for value in values], bool))] |= 1 << ASKS
    return mask


def has_text(batch: RequestBatch) -> Bools:
    """Rows whose prompt can be told from another."""
    return (batch.ragged("sketch").lengths > 0) | (batch.ragged("input_features").lengths > 0)


def asks_outright(batch: RequestBatch, row: int) -> bool:
    """Whether a row has two flags of asking for what stands before it: one alone is an ordinary sentence's."""
    return len(_OUTRIGHT.intersection(batch.texts("flags").at(row))) >= 2


def canaries_of(batch: RequestBatch, row: int) -> list[str]:
    """Flags of the canaries of one row."""
    return [flag for flag in batch.texts("flags").at(row) if flag.startswith(_CANARY_PREFIX)]


class Prompts:
    """Tells whether two requests of a batch, or of two, have the same text, body or template, by hash.

    A text is known by its sketch or its vector, together with its model and its number of tokens:
    an oracle must leave all of them as they are, because another text has other odds.
    """

    def __init__(self, batch: RequestBatch) -> None:
        self._model, self._tokens = batch.text("model"), batch.number("input_tokens")
        self._sketch, self._vector = batch.ragged("sketch"), batch.ragged("input_features")
        self._body, self._template = batch.text("body_hash"), batch.text("template")

    def text(self, row: int) -> int | None:
        """Of the prompt, ``None`` where the tap sent no sketch of it."""
        held: Any = self._sketch.at(row)
        if not len(held):
            held = self._vector.at(row)
        if not len(held):
            return None
        return hash_text(self._model.at(row) or "", repr(float(self._tokens[row])), held.tobytes())

    def body(self, row: int) -> int | None:
        """Of the whole request, parameters included, with its model."""
        value = self._body.at(row)
        return None if value is None else hash_text(self._model.at(row) or "", value)

    def template(self, row: int) -> int | None:
        """Of the first words."""
        value = self._template.at(row)
        return None if value is None else hash_text(value)
