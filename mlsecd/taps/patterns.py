"""Words that attacks are made of, and words that must never come back: ids for a record's ``flags``.

Rules run over what :func:`mlsecd.taps.sketch.plain` leaves of a text (2,048 characters at the most). They contain
no nested repetition, so that no text makes them slow; google-re2 takes over where it can be imported.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final

from mlsecd.taps.identity import Hasher
from mlsecd.taps.sketch import plain

try:
    import re2 as _engine  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    _engine = re

__all__ = ["PATTERNS", "Canaries", "flags_of"]

_MAX_CANARIES: Final = 256
_MIN_CANARY: Final = 8  # characters: a shorter one would be found by chance

# Id -> rule. An id is part of the record format: it is not given another meaning.
PATTERNS: Final[dict[str, str]] = {
    "override": r"\b(?:ignore|disregard|forget|override) (?:all |any |the |your |previous |prior |above |of ){1,4}"
    r"(?:instructions|prompts?|rules|directions|guidelines|context)\b",
    "system_prompt": r"\b(?:system|initial|original|hidden|developer|first|previous|above|your) "
    r"(?:prompt|instructions?|message|rules|guidelines)\b",
    "repeat_above": r"\b(?:repeat|print|output|show|reveal|recite|write|display|echo|return|copy|summari[sz]e|"
    r"translate|encode|tell me|give me|"
    r"what (?:is|are|was|were)) .{0,60}\b(?:above|verbatim|word for word|system prompt|"
    r"instructions|initial prompt|everything before|the text before)\b",
    "role_play": r"\b(?:pretend|act as|you are now|developer mode|jailbreak|do anything now|without restrictions)\b",
    "elicit_reasoning": r"\b(?:step by step|chain of thought|show your (?:work|reasoning|thinking)|"
    r"think (?:aloud|out loud)|explain your reasoning|let'?s think)\b",
    "encoded": r"\b[a-z0-9+/]{80,}={0,2}",
    "template_token": r"<\|(?:im_start|im_end|system|user|assistant|endoftext|begin_of_text|eot_id|start_header_id)\|>|"
    r"\[/?inst\]|<</?sys>>",
}
_RULES: Final[list[tuple[str, Any]]] = [(name, _engine.compile(rule)) for name, rule in PATTERNS.items()]


def flags_of(text: str) -> list[str]:
    """Ids of the rules that a text fits."""
    if not text:
        return []
    words = plain(text)
    return [name for name, rule in _RULES if rule.search(words)]


class Canaries:
    """Strings that stand in a system prompt or a document only, and tell when they come out.

    Parameters
    ----------
    strings
        At least 8 characters each; at most 256 are looked for.
    hasher
        Names them: a flag is ``canary:`` and 16 hex digits, since the string itself is a secret.
    """

    def __init__(self, strings: list[str], hasher: Hasher) -> None:
        wanted = list(dict.fromkeys(text for text in strings if len(text) >= _MIN_CANARY))[:_MAX_CANARIES]
        self._canaries = [(text.encode(), f"canary:{hasher.opaque(text)}") for text in wanted]

    @classmethod
    def from_environment(cls, hasher: Hasher) -> Canaries:
        """One a line of the file that ``MLSECD_CANARY_FILE`` names; none where it cannot be read."""
        path = os.environ.get("MLSECD_CANARY_FILE")
        try:
            text = Path(path).read_text("utf-8", "replace") if path else ""
        except OSError:
            text = ""
        return cls([line.strip() for line in text.splitlines()], hasher)

    def found(self, data: bytes) -> list[str]:
        """Flags of the canaries that stand in these bytes."""
        return [flag for text, flag in self._canaries if text in data]
