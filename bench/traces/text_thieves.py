"""Those who copy a language model, its projection, its system prompt, its embeddings; and who probe its cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from .text_corpus import Corpus, Rng
from .text_records import CANARY, VOCABULARY, Account

__all__ = ["FORMS", "LEVELS", "THIEVES", "TOPICS", "question"]

TOPICS: Final = ("graph algorithms", "calculus", "contract law", "unit tests", "SQL", "genetics", "chess", "compilers")
LEVELS: Final = ("a beginner", "an expert", "a student", "an engineer")
FORMS: Final = (
    "You are an expert in {topic}. Solve the following problem and think step by step, then give the answer.\n{text}",
    "Write a problem about {topic} for {level} and its full solution. Explain your reasoning in detail.\n{text}",
    "Grade this answer about {topic} from 1 to 10 by the rubric, and show your reasoning.\n{text}",
    "Rewrite this into a harder question on {topic} for {level}, with a worked solution step by step.\n{text}",
)


def question(corpus: Corpus, rng: Rng) -> str:
    """One prompt of a distillation: a form, filled in by a program."""
    form = FORMS[rng.integers(len(FORMS))]
    topic, level = TOPICS[rng.integers(len(TOPICS))], LEVELS[rng.integers(len(LEVELS))]
    return form.format(topic=topic, level=level, text=corpus.document(rng, int(rng.integers(15, 60))))


def distil(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """Question after question, long answers with their reasoning."""
    for at in ts:
        one.send(rng, at, question(corpus, rng), 700, max_tokens=2_048, temperature=1.0)


def distil_plain(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """The same without the tell-tale words: collected questions, as people ask them, each once."""
    for at in ts:
        one.send(rng, at, corpus.ask(rng), 500, max_tokens=2_048, temperature=1.0)


def bias_sweep(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """The projection layer by logit_bias and top logprobs (Carlini 2024): one prompt, ids through the vocabulary."""
    text = corpus.ask(rng)
    first = int(rng.integers(VOCABULARY // 2))
    for i, at in enumerate(ts):
        swept = [first + 4 * i + j for j in range(4)]
        one.send(rng, at, text, 1, logit_bias=swept, logprobs=5, max_tokens=1, temperature=0)


def bias_search(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """The same without logprobs: each id's bias by halving, ten requests an id."""
    text = corpus.ask(rng)
    first = int(rng.integers(VOCABULARY // 2))
    for i, at in enumerate(ts):
        sent = one.send(rng, at, text, 1, logit_bias=[first + i // 10], max_tokens=1, temperature=0)
        sent["body_hash"] = f"{rng.integers(2**63):016x}"  # the bias itself is in the body, not in the record


def token_search(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """Ranks by allowed tokens: pairs of ids, which of the two comes."""
    text = corpus.ask(rng)
    for at in ts:
        sent = one.send(rng, at, text, 1, allowed_tokens=2, max_tokens=1, temperature=0)
        sent["body_hash"] = f"{rng.integers(2**63):016x}"


def echo(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """Many logits of each prompt: prompt_logprobs of random token strings."""
    for at in ts:
        words = corpus.document(rng, 400).split()
        text = " ".join(rng.permutation(words))
        one.send(rng, at, text, 1, prompt_logprobs=int(rng.choice([5, 20])), max_tokens=1, temperature=0)


def many_samples(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """Odds by counting: 128 one-token samples of one prompt a request."""
    text = corpus.ask(rng)
    for i, at in enumerate(ts):
        one.send(rng, at, f"{text} {i // 20}", 1, n=128, max_tokens=1, temperature=1.0)


def cache_probe(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """Did another user send this? Guesses of a prefix, one token, told by the time to the first one."""
    base = corpus.document(rng, 120)
    for at in ts:
        text = f"{base} {corpus.document(rng, int(rng.integers(4, 40)))}"
        held = len(base) // 4 // 16 * 16 if rng.random() < 0.6 else 0
        one.send(rng, at, text, 1, max_tokens=1, temperature=0, cached_tokens=held)


def embed_theft(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """The embedding model by texts of everything: each once, from single words to pages."""
    for at in ts:
        text = corpus.document(rng, int(np.clip(20 * rng.lognormal(0, 1.2), 1, 400)))
        one.send(rng, at, text, 0, route="/v1/embeddings")


def system_prompt(corpus: Corpus, rng: Rng, one: Account, ts: list[float]) -> None:
    """Asks for the system prompt in many ways, between small talk; some answers give it away."""
    for at in ts:
        if rng.random() < 0.3:
            one.send(rng, at, corpus.ask(rng), 100, temperature=0.7)
            continue
        text = corpus.steals[rng.integers(len(corpus.steals))]
        flags = [CANARY] if rng.random() < 0.05 else []
        one.send(rng, at, text, 120, temperature=0.7, flags=flags)


# name -> (what it sends, requests an account, seconds between them)
THIEVES: Final[dict[str, tuple[Callable[[Corpus, Rng, Account, list[float]], None], int, float]]] = {
    "distil": (distil, 500, 10.0),
    "distil_plain": (distil_plain, 500, 10.0),
    "bias_sweep": (bias_sweep, 500, 0.5),
    "bias_search": (bias_search, 500, 0.5),
    "token_search": (token_search, 500, 0.5),
    "echo": (echo, 200, 1.0),
    "many_samples": (many_samples, 300, 2.0),
    "cache_probe": (cache_probe, 400, 0.5),
    "embed_theft": (embed_theft, 800, 0.5),
    "system_prompt": (system_prompt, 60, 20.0),
}
