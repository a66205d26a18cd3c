"""Many accounts that change together on a language model: campaigns under cover, honest launches, seasons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from .clients import network, sessions, sizes
from .scenarios import LATER, SPAN
from .text_clients import chat, population
from .text_corpus import Corpus, Rng
from .text_records import Account
from .text_words import Words

__all__ = ["FLAG", "HYDRAS", "LAUNCHES", "SEASONS", "hydra", "launch", "season"]

ACCOUNTS: Final = 60
LAUNCHED: Final = 50
CUSTOMERS: Final = 0.5  # of a launch's accounts were customers before, and chat besides
FLAG: Final = "elicit_reasoning"

Ask = Callable[[Corpus, Rng, Words], str]


def _filled(corpus: Corpus, rng: Rng, words: Words, form: str) -> str:
    topic, level = words.topics[rng.integers(len(words.topics))], words.levels[rng.integers(len(words.levels))]
    return form.format(topic=topic, level=level, text=corpus.document(rng, int(rng.integers(15, 60))))


def _forms(corpus: Corpus, rng: Rng, words: Words) -> str:
    return _filled(corpus, rng, words, words.forms[rng.integers(len(words.forms))])


def _one_form(corpus: Corpus, rng: Rng, words: Words) -> str:
    return _filled(corpus, rng, words, words.one_form)


def _app(corpus: Corpus, rng: Rng, words: Words) -> str:
    return _filled(corpus, rng, words, words.app)


def _app_forms(corpus: Corpus, rng: Rng, words: Words) -> str:
    return _filled(corpus, rng, words, words.app_forms[rng.integers(len(words.app_forms))])


def _button(corpus: Corpus, rng: Rng, words: Words) -> str:
    return f"{corpus.ask(rng)} {words.button}"


def _plain(corpus: Corpus, rng: Rng, _: Words) -> str:
    return corpus.ask(rng)


# name -> (what the fifth of an account's requests asks that is no cover, the median of tokens answered)
HYDRAS: Final[dict[str, tuple[Ask, float]]] = {
    "bare": (_forms, 700.0),
    "one_form": (_one_form, 700.0),
    "own_words": (_button, 700.0),
    "plain": (_plain, 500.0),
}
# name -> what an honest application asks for: by one form, by a few forms of topics, or after its users' own words
LAUNCHES: Final[dict[str, Ask]] = {"app": _app, "forms": _app_forms, "button": _button}
SEASONS: Final = ("long", "reasons")


def hydra(name: str, corpus: Corpus, rng: Rng, words: Words) -> list[Account]:
    """60 accounts that distil under 80 % of chat, and set no limit to an answer."""
    ask, out = HYDRAS[name]
    made = []
    for i in range(ACCOUNTS):
        one = Account(f"hydra-{name}{i:02d}", f"hydra_{name}", network(rng), attack=True, campaign=0)
        ts = sessions(rng, 75, LATER + rng.uniform(0, SPAN / 2), SPAN / 2, 30.0)
        theirs = np.zeros(75, bool)
        theirs[rng.choice(75, 15, replace=False)] = True
        chat(corpus, rng, one, ts[~theirs].tolist())
        for at in ts[theirs].tolist():
            one.send(rng, at, ask(corpus, rng, words), out, temperature=1.0)
        made.append(one)
    return made


def launch(name: str, corpus: Corpus, rng: Rng, words: Words) -> list[Account]:
    """50 accounts start to use an application that wants reasons, within half a day; half of them chat besides."""
    made = []
    for i, n in enumerate(sizes(rng, LAUNCHED)):
        one = Account(f"launch-{name}{i:02d}", f"launch_{name}", network(rng))
        start = LATER + SPAN / 4 + rng.uniform(0, SPAN / 4)
        for at in sessions(rng, min(int(n), 200), start, SPAN / 2, 40.0).tolist():
            one.send(rng, at, LAUNCHES[name](corpus, rng, words), 500, temperature=0.5)
        if rng.random() < CUSTOMERS:
            chat(corpus, rng, one, sessions(rng, int(sizes(rng, 1)[0]), LATER, SPAN, 40.0).tolist())
        made.append(one)
    return made


def season(name: str, corpus: Corpus, rng: Rng) -> list[Account]:
    """300 ordinary clients; within a day all answers become twice as long, or one chat in four asks for reasons."""
    made = population(corpus, rng, f"season-{name}", 300, start=LATER, span=SPAN)
    for record in (record for one in made for record in one.records):
        turned = min((record["ts"] - LATER) / (SPAN / 2), 1.0)
        if record["route"] != "/v1/chat/completions" or record.get("max_tokens"):
            continue
        if name == "long":
            _lengthen(record, 1.0 + turned)
        elif rng.random() < 0.25 * turned:
            record["flags"] = sorted({*record.get("flags", ()), FLAG})
            _lengthen(record, 1.5)
    return made


def _lengthen(record: dict[str, object], times: float) -> None:
    before = int(str(record["output_tokens"]))
    after = int(min(2_048, before * times))
    record["output_tokens"] = after
    record["duration_s"] = round(float(str(record["duration_s"])) + 0.011 * (after - before), 4)
