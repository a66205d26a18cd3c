"""What a request to a language model says without its text: tokens, template, status, flags. One bit a channel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._parameters_distinct import hash_text
from mlsecd.detectors._parameters_rows import is_embedding
from mlsecd.detectors._sections import facts_of, numbers
from mlsecd.errors import MALFORMED, BaselineError
from mlsecd.records import RequestBatch, Text

__all__ = ["CHANNELS", "FORMED", "FORMED_LONG", "LONG", "RETRY", "Reference", "Rows", "amounts", "encode", "lengths"]

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
Bits = NDArray[np.int32]

CHANNELS: Final = (
    "long",
    "long_tail",
    "ratio",
    "ratio_tail",
    "asks_long",
    "elicits",
    "elicits_long",
    "formed",
    "formed_long",
    "odd_length",
    "odd_status",
    "unscorable",
    "retry",
)
LONG, FORMED, FORMED_LONG, RETRY = (CHANNELS.index(name) for name in ("long", "formed", "formed_long", "retry"))

_MAY_BE_INFINITE: Final = frozenset({"cuts", "lengths"})  # which nothing passes, where there was nothing to learn from
_REFUSED: Final = frozenset({"content_filter", "refusal", "safety"})  # reasons for which an answer ended
_ELICITS: Final = "elicit_reasoning"


@dataclass(slots=True)
class Reference:
    """What is ordinary for one model.

    Attributes
    ----------
    cuts
        float64[3, 2]: above which answers are long, answers are long for their question, and the
        answer's limit is high; for the oddest 5 % and 0.5 %. Infinite where that cannot be told.
    lengths
        float64[2, 2]: of texts to answer and to embed, between which 95 % of the input tokens lie.
    null
        float64[3, C]: a, b and scale of each channel's beta-binomial.
    scores
        float64[N], ascending: the highest score of each calibration client.
    facts
        Numbers for the standing: clients, epoch, event times, clients a week.
    """

    model: str
    cuts: F8
    lengths: F8
    null: F8
    scores: F8
    facts: dict[str, float] = field(default_factory=dict)

    def header(self) -> dict[str, Any]:
        """The part that is JSON."""
        return {"model": self.model, "channels": list(CHANNELS), "facts": self.facts}

    def arrays(self, prefix: str) -> dict[str, F8]:
        """The part that is numbers."""
        return {f"{prefix}/{name}": getattr(self, name) for name in ("cuts", "lengths", "null", "scores")}

    @classmethod
    def of(cls, header: Any, arrays: Any, prefix: str) -> Reference:
        """Back from a baseline.

        Raises
        ------
        BaselineError
            It does not fit this version.
        """
        try:
            names = ("cuts", "lengths", "null", "scores")
            held = [numbers(arrays, f"{prefix}/{name}", infinite=name in _MAY_BE_INFINITE) for name in names]
            facts = facts_of(header)
            made = cls(str(header["model"]), held[0], held[1], held[2], held[3], facts)
            shapes = [one.shape for one in held[:3]]
            fits = header["channels"] == list(CHANNELS) and shapes == [(3, 2), (2, 2), (3, len(CHANNELS))]
            fits = fits and held[3].ndim == 1 and len(held[3]) > 0 and bool((held[2] > 0).all())
            fits = fits and {"clients_per_week", "last_ts"} <= set(facts)
        except MALFORMED as error:
            raise BaselineError(f"extraction_language: the baseline's part cannot be used: {error}") from error
        if not fits:
            raise BaselineError("extraction_language: the baseline's part has another shape: fit it again")
        return made


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a batch, encoded: what fires without memory, and the hashes for what needs one.

    Attributes
    ----------
    fired, tried
        int32[n, C].
    templates, bodies
        Hashes, ``None`` where there is none.
    """

    ts: F8
    fired: Bits
    tried: Bits
    templates: list[int | None]
    bodies: list[int | None]


def amounts(batch: RequestBatch, rows: I8) -> F8:
    """Tokens of the answer, answer over question, and the limit asked for (0: none), float64[3, n]; NaN: unknown."""
    answer, question = batch.number("output_tokens")[rows], batch.number("input_tokens")[rows]
    limit = np.nan_to_num(batch.number("max_tokens")[rows])
    ratio = answer / np.where(question > 0, question, np.nan)
    made = np.stack([answer, ratio, limit])
    made[:, is_embedding(batch)[rows]] = np.nan
    return made


def lengths(batch: RequestBatch, rows: I8) -> tuple[F8, I8]:
    """Input tokens, and which of the two kinds of text each is: 0 to answer, 1 to embed."""
    return batch.number("input_tokens")[rows], is_embedding(batch)[rows].astype(np.int64)


def encode(batch: RequestBatch, rows: I8, cuts: F8, bounds: F8) -> Rows:
    """Hold rows against a reference's cuts and bounds of lengths."""
    fired = np.zeros((len(rows), len(CHANNELS)), np.int32)
    tried = np.zeros_like(fired)
    answer, ratio, limit = amounts(batch, rows)
    length, kind = lengths(batch, rows)
    elicits = _flagged(batch, _ELICITS)[rows]
    status, reason = batch.number("status")[rows], batch.text("finish_reason")
    refused = np.array([value in _REFUSED for value in reason.values] + [False])[reason.codes[rows]]
    text = (batch.text("template").codes[rows] >= 0) | (batch.texts("flags").codes.lengths[rows] > 0)
    channels = {
        "long": (answer > cuts[0, 0], answer >= 0),
        "long_tail": (answer > cuts[0, 1], answer >= 0),
        "ratio": (ratio > cuts[1, 0], ratio >= 0),
        "ratio_tail": (ratio > cuts[1, 1], ratio >= 0),
        "asks_long": (limit > cuts[2, 0], limit >= 0),
        "elicits": (elicits, text),
        "elicits_long": (elicits & (answer > cuts[0, 0]), text & (answer >= 0)),
        "odd_length": ((length < bounds[kind, 0]) | (length > bounds[kind, 1]), length >= 0),
        "odd_status": ((status >= 400) | refused, (status >= 0) | refused),
        "unscorable": (~(length >= 0) | ~((answer >= 0) | (kind == 1) | (status >= 400)), np.ones(len(rows), bool)),
    }
    for name, (fires, tries) in channels.items():
        c = CHANNELS.index(name)
        tried[:, c] = tries
        fired[:, c] = fires & tries
    templates, bodies = _hashes(batch.text("template"), rows), _hashes(batch.text("body_hash"), rows)
    tokens = np.clip(np.nan_to_num(length), 0.0, 1e9).astype(np.float32).view(np.uint32).tolist()
    whole = [
        None if body is None else body ^ (template or 0) ^ (count << 32)
        for body, template, count in zip(bodies, templates, tokens, strict=True)
    ]
    return Rows(batch.completion[rows], fired, tried, templates, whole)


def _flagged(batch: RequestBatch, flag: str) -> NDArray[np.bool_]:
    flags, out = batch.texts("flags"), np.zeros(len(batch), bool)
    if flag in flags.values:
        at = np.repeat(np.arange(len(batch)), flags.codes.lengths)
        out[at[flags.codes.values == flags.values.index(flag)]] = True
    return out


def _hashes(text: Text, rows: I8) -> list[int | None]:
    """A hash of each row's string; each string is hashed once."""
    known: dict[int, int | None] = {-1: None}
    out = []
    for code in text.codes[rows].tolist():
        if code not in known:
            known[code] = hash_text(text.values[code])
        out.append(known[code])
    return out
