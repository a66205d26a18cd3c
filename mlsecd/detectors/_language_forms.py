"""Forms that accounts have in common: one application's few, the many of one list, or none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

__all__ = ["Alike", "alike", "common_forms"]

_FEW: Final = 3  # forms that one application puts its users' texts in
_SHARE: Final = 0.1  # of the accounts use a form, for it to be one that they have in common,
_LEAST: Final = 3  # and so many of them at least
_OWN: Final = 2  # rare forms of an account that works off a list
_MOST: Final = 0.5  # of the accounts use a form that is not rare


class Alike(NamedTuple):
    """Accounts that have forms in common.

    Attributes
    ----------
    forms
        How many.
    who
        Which of the accounts use them, by place.
    """

    forms: int
    who: list[int]


def common_forms(forms: Sequence[Iterable[int]]) -> frozenset[int]:
    """Forms that many of the accounts use; ``forms``: those of each, without repeats."""
    used = Counter(form for own in forms for form in own)
    least = max(_LEAST, math.ceil(_SHARE * len(forms)))
    return frozenset(form for form, accounts in used.items() if accounts >= least)


def alike(forms: Sequence[Iterable[int]]) -> tuple[Alike, Alike]:
    """Those of the accounts who use any form in common; and those who work off a list.

    A list has more forms than an application: an account uses more than three of those in common, or two of more than
    three that no more than half of the accounts use. So strangers with a few forms of their own neither hide the
    accounts of an application nor make a list of its forms.
    """
    common = common_forms(forms)
    used = Counter(form for own in forms for form in own)
    rare = frozenset(form for form in common if used[form] <= _MOST * len(forms))
    own_common = [common.intersection(own) for own in forms]
    listed = [
        i for i, own in enumerate(own_common) if len(own) > _FEW or (len(rare) > _FEW and len(rare & own) >= _OWN)
    ]
    return Alike(len(common), [i for i, own in enumerate(own_common) if own]), Alike(len(common), listed)
