"""Ordinary users of a language model, the odd ones too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from .clients import network, sessions, sizes
from .text_corpus import Corpus, Rng
from .text_records import Account, ids

__all__ = ["KINDS", "aggregator", "chat", "population"]


def chat(corpus: Corpus, rng: Rng, one: Account, ts: list[float], **given: object) -> None:
    """Conversations: each turn carries those before it, which the server has cached."""
    temperature = float(rng.choice([0.3, 0.7, 1.0]))
    history: list[str] = []
    for at in ts:
        if len(history) > rng.integers(1, 7):
            history = []
        held = sum(map(len, history)) // 4 // 16 * 16
        history.append(corpus.ask(rng))
        one.send(rng, at, "\n".join(history), 180, temperature=temperature, cached_tokens=held, **given)


def app(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """One program's form around its users' texts."""
    form = corpus.ask(rng)
    held = len(form) // 4 // 16 * 16
    limit = int(rng.choice([128, 256, 1_024]))
    for at in ts:
        text = f"{form}\n\n{corpus.document(rng, int(rng.integers(15, 150)))}"
        one.send(rng, at, text, 60, max_tokens=limit, temperature=0.2, cached_tokens=held)


def batch(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """A table's rows through one prompt, overnight."""
    form = f"{corpus.ask(rng)}\nRow:"
    for at in ts:
        text = f"{form} {corpus.document(rng, int(rng.integers(8, 30)))}"
        one.send(rng, at, text, 25, max_tokens=64, temperature=0, cached_tokens=len(form) // 4 // 16 * 16)


def poller(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """A health check: the same few words, one token."""
    text = str(rng.choice(["ping", "Say OK", "Hello, are you there?", corpus.ask(rng)]))
    for at in ts:
        one.send(rng, at, text, 1, max_tokens=1, temperature=0)


def retry(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """An impatient client: the same body again."""
    text = corpus.ask(rng)
    for at in ts:
        if rng.random() < 0.6:
            text = corpus.ask(rng)
        one.send(rng, at, text, 150, temperature=0.7)


def logprobs(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """A classifier that reads the odds of its labels."""
    form = f"{corpus.ask(rng)}\nAnswer with one word.\n"
    top, limit = int(rng.choice([1, 5, 5, 20])), int(rng.choice([1, 3, 5]))
    for at in ts:
        text = form + corpus.document(rng, int(rng.integers(10, 60)))
        one.send(rng, at, text, 2, logprobs=top, max_tokens=limit, temperature=0)


def bias(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """A classifier that allows a few labels by logit_bias, always the same ones."""
    labels = ids(rng, int(rng.integers(2, 9)))
    form = f"{corpus.ask(rng)}\nYes or no?\n"
    for at in ts:
        text = form + corpus.document(rng, int(rng.integers(10, 60)))
        one.send(rng, at, text, 1, logit_bias=labels, max_tokens=1, temperature=0)


def guided(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """Answers by grammar."""
    for at in ts:
        text = f"Fill in the form.\n{corpus.document(rng, int(rng.integers(20, 80)))}"
        one.send(rng, at, text, 40, allowed_tokens=int(rng.choice([2, 10, 200])), max_tokens=128, temperature=0)


def agent(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """A tool-using agent: a long prompt that grows by each tool's answer."""
    tools = corpus.document(rng, 200)
    seen = tools
    for at in ts:
        if len(seen) > 12_000:
            seen = tools
        held = len(seen) // 4 // 16 * 16
        seen += "\n" + corpus.document(rng, int(rng.integers(20, 120)))
        one.send(rng, at, seen, 90, temperature=0, cached_tokens=held)


def embed(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """An index being built: passages of one's own documents."""
    topic = [corpus.document(rng, 40) for _ in range(6)]
    for at in ts:
        text = f"{topic[rng.integers(6)]} {corpus.document(rng, int(rng.integers(40, 90)))}"
        one.send(rng, at, text, 0, route="/v1/embeddings")


def reasoner(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """Someone with real problems who wants the steps, now and then."""
    for at in ts:
        text = corpus.ask(rng) + (" Explain your reasoning step by step." if rng.random() < 0.5 else "")
        one.send(rng, at, text, 400, temperature=0.7)


def evaluator(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """A researcher who measures the perplexity of texts."""
    for at in ts:
        text = corpus.document(rng, int(rng.integers(60, 160)))
        one.send(rng, at, text, 1, prompt_logprobs=0, max_tokens=1, temperature=0)


# kind -> (share of all, what it sends, seconds between requests of a session)
KINDS: Final[dict[str, tuple[float, Callable[..., None], float]]] = {
    "chat": (0.38, chat, 40.0),
    "app": (0.17, app, 8.0),
    "agent": (0.09, agent, 6.0),
    "batch": (0.08, batch, 0.3),
    "retry": (0.07, retry, 10.0),
    "logprobs": (0.05, logprobs, 3.0),
    "embed": (0.04, embed, 0.5),
    "poller": (0.04, poller, 30.0),
    "reasoner": (0.03, reasoner, 60.0),
    "bias": (0.02, bias, 3.0),
    "guided": (0.02, guided, 5.0),
    "evaluator": (0.01, evaluator, 1.0),
}


def population(corpus: Corpus, rng: Rng, prefix: str, count: int, *, start: float, span: float) -> list[Account]:
    """Ordinary clients, one in 150 of them an aggregator."""
    names, shares = list(KINDS), np.array([share for share, _, _ in KINDS.values()])
    made = []
    for i, n in enumerate(sizes(rng, count)):
        kind = str(rng.choice(names, p=shares / shares.sum()))
        _, send, gap = KINDS[kind]
        one = Account(f"{prefix}{i:04d}", kind, network(rng))
        send(corpus, rng, one, sessions(rng, int(n), start, span, gap).tolist())
        made.append(one)
    made[: count // 150] = [
        aggregator(corpus, rng, f"{prefix}{i:04d}", 300, start=start, span=span) for i in range(count // 150)
    ]
    return made


def aggregator(corpus: Corpus, rng: Rng, name: str, users: int, *, start: float, span: float) -> Account:
    """One key, many end users who chat: an honest reseller."""
    one = Account(name, "aggregator", network(rng))
    for user in range(users):
        n = int(np.clip(4 * rng.lognormal(0, 0.8), 1, 40))
        chat(corpus, rng, one, sessions(rng, n, start, span, 40.0).tolist(), user=f"{name}-u{user:04d}")
    return one
