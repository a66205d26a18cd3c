"""Forms that accounts have in common: one application's few, the many of one list, or none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

__all__ = ["FEW", "common_forms", "sharing"]

FEW: Final = 3  # forms that one application puts its users' texts in
_SHARE: Final = 0.1  # of the accounts use a form, for it to be one that they have in common,
_LEAST: Final = 3  # and so many of them at least
_OWN: Final = 2  # common forms of an account that works off a list


def common_forms(forms: Sequence[Iterable[int]]) -> frozenset[int]:
    """Forms that many of the accounts use; ``forms``: those of each, without repeats."""
    used = Counter(form for own in forms for form in own)
    least = max(_LEAST, math.ceil(_SHARE * len(forms)))
    return frozenset(form for form, accounts in used.items() if accounts >= least)


def sharing(forms: Sequence[Iterable[int]], common: frozenset[int]) -> list[bool]:
    """Which of the accounts use what is common: one form where there are few, else two."""
    least = 1 if len(common) <= FEW else _OWN
    return [len(common.intersection(own)) >= least for own in forms]
