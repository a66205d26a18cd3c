"""From an account's counts to a verdict in plain words. No baseline: what is asked for is the evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from mlsecd.detectors._parameters_account import Account, Sign
from mlsecd.detectors._parameters_rows import (
    ALLOWED,
    ASKS,
    CACHE,
    CANARY,
    ECHO,
    EMBED,
    HALVING,
    SAMPLES,
    SIGNS,
    SWEEP,
    SWEEP_LONG,
    UNLISTED,
)
from mlsecd.records import Severity

__all__ = ["CONTROLS", "Verdict", "judge"]

_FRESH: Final = 8  # different lists of ids, for a warning, and
_FRESH_PAGE: Final = 16  # for a page: a program has a few
_WIDE: Final = 16  # times the page's ids: so many in a few requests are no program's lists
_FRESH_WIDE: Final = 4
# Biased ids a text, repeats counted: the odds of many tokens after one text are what the attack needs,
# while a test with choices has a few of its own for each of many texts.
_IDS_A_TEXT: Final = 64
_LONG_FACTOR: Final = 4  # a bias that follows the text (banned words, say) meets more ids honestly
_TURNS: Final = 8  # bodies a prompt: the same text again and again with other parameters
_UNLISTED_IDS: Final = 32  # ids a request, where records hold only their number
_FLIP_SHARE: Final = 0.2  # of probes whose cached prefix is not as it was a moment ago
_MODE_SHARE: Final = 0.2  # of the smaller of two modes
_VALLEY_SHARE: Final = 0.2  # of the smaller mode's peak, at most, between them

_EXTRACT, _PROMPT, _LEAK = "AML.T0024.002", "AML.T0056", "AML.T0057"
# Controls by sign, where they are not those of extraction.
CONTROLS: Final = {
    CANARY: ((_PROMPT, "AML.T0069.002"), ("LLM07:2025",)),
    ASKS: ((_PROMPT, "AML.T0069.002"), ("LLM07:2025",)),
    CACHE: ((_LEAK,), ("LLM02:2025",)),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far an account has come towards one sign's alarm.

    Attributes
    ----------
    severity
        ``None`` below the threshold.
    score, threshold
        What is counted, and from which count on it alarms.
    """

    severity: Severity | None
    score: float
    threshold: float
    words: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def risk(self) -> float:
        """Share of the threshold."""
        return self.score / self.threshold


def _below(score: float, threshold: float) -> Verdict:
    return Verdict(None, score, threshold)


def _of_vocabulary(ids: int, params: Any) -> str:
    return f" ({ids / params.vocabulary:.1%} of the vocabulary's {params.vocabulary:,})" if params.vocabulary else ""


def _canary(sign: Sign, _: Account, params: Any) -> Verdict:
    del params
    words = f"{sign.rows:,} requests or their answers hold a canary that stands only in a system prompt or a document"
    return Verdict(Severity.HIGH, sign.rows, 1, words, {"canaries": len(sign.things)})


def _sweep(sign: Sign, _: Account, params: Any) -> Verdict:
    ids, page, warn = len(sign.things), params.sweep_tokens, params.sweep_suspect_tokens
    texts = len(sign.texts)
    if sign.fresh < _FRESH_WIDE or sign.amount < _IDS_A_TEXT * texts:
        return _below(min(ids, warn / 8), warn)
    loud = ids >= page and (sign.fresh >= _FRESH_PAGE or ids >= _WIDE * page)
    if not loud and (ids < warn or sign.fresh < _FRESH):
        return _below(min(ids, warn - 1), warn)
    severity = Severity.HIGH if loud and texts else Severity.MEDIUM
    words = (
        f"{sign.rows:,} requests biased {ids:,} different tokens{_of_vocabulary(ids, params)} and asked for the odds "
        f"of at most a few tokens of output: that is how a model's output layer is read out"
    )
    aside = "" if texts else "; without sketches of the texts, a test with choices would look the same"
    told = {"distinct_tokens": ids, "biased_tokens": int(sign.amount), "texts": texts or None}
    return Verdict(severity, ids, page if loud else warn, words + aside, told)


def _sweep_long(sign: Sign, _: Account, params: Any) -> Verdict:
    ids, threshold = len(sign.things), _LONG_FACTOR * params.sweep_tokens
    if sign.fresh < _FRESH_PAGE or sign.amount < _IDS_A_TEXT * len(sign.texts):
        return _below(min(ids, threshold / 8), threshold)
    severity = Severity.MEDIUM if ids >= threshold else None
    words = (
        f"{sign.rows:,} requests with logprobs biased {ids:,} different tokens{_of_vocabulary(ids, params)}, "
        f"in answers of ordinary length"
    )
    return Verdict(severity, ids, threshold, words, {"distinct_tokens": ids, "biased_tokens": int(sign.amount)})


def _unlisted(sign: Sign, _: Account, params: Any) -> Verdict:
    if sign.rows < params.oracle_requests or sign.amount < _UNLISTED_IDS * sign.rows:
        return _below(0.0, params.oracle_requests)
    words = (
        f"{sign.rows:,} requests for the odds of one token biased {sign.amount / sign.rows:.0f} tokens each; "
        f"records hold only how many, not whether they are always the same"
    )
    return Verdict(Severity.LOW, sign.rows, params.oracle_requests, words, {"biased_tokens": int(sign.amount)})


def _oracle(what: str) -> Callable[[Sign, Account, Any], Verdict]:
    def rule(sign: Sign, _: Account, params: Any) -> Verdict:
        bodies, prompts = len(sign.things), len(sign.texts)
        if not prompts or bodies < _TURNS * prompts:
            return _below(min(bodies, params.oracle_requests / 8), params.oracle_requests)
        severity = Severity.MEDIUM if bodies >= params.oracle_requests else None
        words = (
            f"{bodies:,} different requests {what} and ask for a token or so, over only {prompts:,} different "
            f"texts: the same text with other parameters reads odds that the model was not asked for"
        )
        return Verdict(severity, bodies, params.oracle_requests, words, {"bodies": bodies, "texts": prompts})

    return rule


def _echo(sign: Sign, _: Account, params: Any) -> Verdict:
    texts, threshold = len(sign.things) or sign.rows, params.echo_requests
    severity = Severity.MEDIUM if texts >= threshold else None
    words = (
        f"{sign.rows:,} requests had the odds of {sign.amount:,.0f} tokens of their own prompts listed "
        f"(prompt_logprobs of 2 or more) and hardly any answer"
    )
    return Verdict(severity, texts, threshold, words, {"texts": texts, "odds": int(sign.amount)})


def _samples(sign: Sign, _: Account, params: Any) -> Verdict:
    threshold = params.samples
    if not len(sign.texts) or sign.amount < params.samples_per_text * len(sign.texts):
        return _below(min(sign.amount, threshold / 8), threshold)
    severity = Severity.MEDIUM if sign.amount >= threshold else None
    words = (
        f"{sign.amount:,.0f} answers of a token or so were drawn for {len(sign.texts):,} texts by {sign.rows:,} "
        f"requests: counting them gives the odds that logprobs would"
    )
    return Verdict(severity, sign.amount, threshold, words, {"samples": int(sign.amount), "texts": len(sign.texts)})


def _cache(sign: Sign, account: Account, params: Any) -> Verdict:
    guesses, threshold = len(sign.things), params.probe_requests
    lost, changed = int(sign.amount), int(sign.amount) + sign.fresh
    if lost >= _FLIP_SHARE * sign.rows:
        severity, told = Severity.MEDIUM, f"the prefix was cached for one and not for the next {lost:,} times"
    elif changed >= _FLIP_SHARE * sign.rows:
        severity, told = Severity.LOW, f"the cached part of the prefix changed {changed:,} times"
    elif account.delays is not None and not changed and _two_modes(account.delays):
        severity, told = Severity.LOW, "the first token came either fast or slow"
    else:
        return _below(min(guesses, threshold / 8), threshold)
    words = (
        f"{sign.rows:,} requests for a single token with {guesses:,} different texts that begin alike, and {told}: "
        f"the prefix cache tells what other users have sent"
    )
    evidence = {"texts": guesses, "cache_changes": changed}
    return Verdict(severity if guesses >= threshold else None, guesses, threshold, words, evidence)


def _two_modes(delays: Any) -> bool:
    """Whether times to the first token fall into two groups, at least an octave apart, with a valley between."""
    total = int(delays.sum())
    for cut in range(2, len(delays) - 2):
        low, high = delays[:cut], delays[cut:]
        if min(low.sum(), high.sum()) < _MODE_SHARE * total:
            continue
        left, right = int(np.argmax(low)), cut + int(np.argmax(high))
        if right - left < 2:
            continue
        if delays[left + 1 : right].min(initial=total) <= _VALLEY_SHARE * min(delays[left], delays[right]):
            return True
    return False


def _asks(sign: Sign, _: Account, params: Any) -> Verdict:
    forms, threshold = len(sign.things), params.asking_forms
    loud = Severity.MEDIUM if sign.fresh >= threshold else Severity.LOW
    severity = loud if forms >= threshold else None
    words = (
        f"{sign.rows:,} requests in {forms:,} different wordings ask for the system prompt or what stands before them"
    )
    return Verdict(severity, forms, threshold, words, {"wordings": forms, "outright": sign.fresh})


def _embed(sign: Sign, _: Account, params: Any) -> Verdict:
    inputs, threshold = len(sign.things), params.embedding_inputs
    severity = Severity.LOW if inputs >= threshold else None
    words = (
        f"about {inputs:,} different texts were embedded: enough to train a copy of the embedding model; "
        f"building a large index looks the same"
    )
    return Verdict(severity, inputs, threshold, words, {"texts": inputs})


_RULES: Final[dict[int, Callable[[Sign, Account, Any], Verdict]]] = {
    CANARY: _canary,
    SWEEP: _sweep,
    SWEEP_LONG: _sweep_long,
    UNLISTED: _unlisted,
    HALVING: _oracle("bias a few tokens without asking for odds"),
    ALLOWED: _oracle("allow only a few tokens"),
    ECHO: _echo,
    SAMPLES: _samples,
    CACHE: _cache,
    ASKS: _asks,
    EMBED: _embed,
}


def judge(number: int, account: Account, params: Any) -> Verdict:
    """What one sign of an account says just now; its evidence has ``sign``, ``requests`` and its own numbers."""
    sign = account.signs[number]
    verdict = _RULES[number](sign, account, params)
    if verdict.severity is not None:
        verdict.evidence.update({"sign": SIGNS[number], "requests": sign.rows})
    return verdict
