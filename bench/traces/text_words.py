"""The words that programs ask in: thieves' forms and honest applications', other ones in each part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .text_thieves import FORMS, LEVELS, TOPICS

__all__ = ["HELD_OUT", "TUNE", "Words"]


@dataclass(frozen=True)
class Words:
    """``forms`` and ``one_form`` are thieves', ``app`` and ``app_forms`` an honest application's; all want reasons."""

    topics: tuple[str, ...]
    levels: tuple[str, ...]
    forms: tuple[str, ...]
    one_form: str
    app: str
    app_forms: tuple[str, ...]
    button: str  # what an application puts after its users' own words


TUNE: Final = Words(
    topics=TOPICS,
    levels=LEVELS,
    forms=FORMS,
    one_form="Below is a task. Think step by step inside of tags, then answer it.\n{topic}: {text}",
    app="You are Tess, who helps pupils with their homework. Explain each solution step by step.\nPupil: {text}",
    app_forms=(
        "Help {level} with {topic}: explain step by step how this is solved.\n{text}",
        "Check this homework in {topic} and show your work for {level}.\n{text}",
        "Make three exercises in {topic} for {level}, each solved step by step.\n{text}",
    ),
    button="Explain your reasoning step by step.",
)
HELD_OUT: Final = Words(
    topics=("tax rules", "organic chemistry", "networking", "poetry", "statistics", "medicine", "robotics", "Latin"),
    levels=("a child", "a professor", "a nurse", "a manager", "a translator"),
    forms=(
        "As a teacher of {topic}, answer with a full chain of thought before the final line.\n{text}",
        "Question on {topic}, meant for {level}. Show your work, then answer in one sentence.\n{text}",
        "Compare two answers in {topic}; explain your reasoning and say which is better.\n{text}",
        "Turn the text into a {topic} exam for {level} and solve it step by step.\n{text}",
        "Debate {topic} with {level}: for each claim show your reasoning.\n{text}",
    ),
    one_form="Instruction follows. Show your reasoning first and the result after it.\n[{topic}] {text}",
    app="This is the help desk of a tax program. Show your reasoning to the customer.\nCustomer: {text}",
    app_forms=(
        "Tell {level} why this holds in {topic}, and show your reasoning.\n{text}",
        "Plan a lesson on {topic} for {level}; every task is solved step by step.\n{text}",
        "Review this text on {topic} and explain your reasoning to {level}.\n{text}",
    ),
    button="Please show your reasoning.",
)
