"""Each part of the clients learned from by itself, and all scored by the parts that have not seen them.

A baseline is recorded from whoever was there, and some of them may be thieves already: nulls, cuts and scales
grow until nothing is odd any more. So whose single queries look like nobody else's does not shape a reference.
That is decided within the reference's own part, so the other parts stay exchangeable with clients yet to come, and
split conformal calibration (Vovk 2005) holds for them as it did. Channels of nearness have no say in it: those who
vary queries are honest kinds of few clients (video, what-if questions), and a third may have one of them only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._extraction_calibration import (
    Material,
    balanced,
    frame_of,
    highest,
    learn,
    owners_of,
)
from mlsecd.detectors._extraction_channels import Reference
from mlsecd.detectors._extraction_clients import thirds
from mlsecd.detectors._extraction_level import tail_of
from mlsecd.kernels import Kernels

__all__ = ["Suspect", "calibrate"]

F8 = NDArray[np.float64]

_FOLDS: Final = 3
_LOOKS: Final = 2
_BEYOND: Final = 0.05  # so few clients are expected as high as a suspect
_ASIDE_MOST: Final = 0.1  # of a part: more than that are a kind of traffic, whatever it is
_SINGLE: Final = ("ood_", "unc")  # of single queries; to the residual honest clients who vary one case are odd
_FEWEST: Final = 30  # clients in a part: fewer do not tell who is odd among them


class Suspect(NamedTuple):
    """A client of the baseline that scores beyond what the others explain."""

    name: str
    score: float
    channel: str


def calibrate(material: Material, epoch_seconds: float, kernels: Kernels) -> tuple[Reference, list[Suspect]]:
    """The first third's reference, with the scores of all others; and who is suspect, the highest first.

    ``scores`` are split conformal, which is what certifies. ``crossed`` are the scores of every client by the two
    references that have not seen it: twice as many, and no draw of a third decides them; their references are not
    the deployed one, so they certify nothing.
    """
    parts = thirds(list(material.clients))
    references = [_learn_without_suspects(material, part, epoch_seconds, kernels) for part in parts]
    reached: dict[str, list[F8]] = {name: [] for name in material.clients}
    for reference, part in zip(references, parts, strict=True):
        others = [name for other in parts if other is not part for name in other]
        best = highest(reference, material, others, epoch_seconds, kernels)
        for name, own in zip(others, best, strict=True):
            reached[name].append(own)
        if reference is references[0]:
            reference.scores = np.sort(best.max(axis=1))
    made = references[0]
    made.crossed = np.sort([own.max() for both in reached.values() for own in both])
    suspects = _listed(reached, made.crossed, kernels.CHANNELS)
    made.facts = {
        "clients": float(len(made.scores)),
        "reference_clients": float(len(parts[0])),
        "suspects": float(len(suspects)),
        "epoch_seconds": epoch_seconds,
    }
    return made, suspects


def _listed(reached: dict[str, list[F8]], crossed: F8, channels: tuple[str, ...]) -> list[Suspect]:
    """Those whom neither reference explains."""
    most = tail_of(crossed, _BEYOND / len(reached))
    lower = {name: min(both, key=lambda own: float(own.max())) for name, both in reached.items()}
    made = [Suspect(name, float(own.max()), channels[int(own.argmax())]) for name, own in lower.items()]
    return sorted((one for one in made if one.score > most), key=lambda one: (-one.score, one.name))


def _learn_without_suspects(
    material: Material, part: Sequence[str], epoch_seconds: float, kernels: Kernels
) -> Reference:
    """A reference of those clients of a part whose queries the rest of the part explains.

    Many thieves hide each other, so they are looked for without the tenth whose queries lie furthest out, whoever
    they are, and again without those and whom the first look found. Whom that explains comes back: a concentration
    step (Rousseeuw & Van Driessen 1999).
    """
    found = frozenset[str]()
    if len(part) >= _FEWEST:
        most = int(_ASIDE_MOST * len(part))
        furthest = np.argsort(-_oddness(material, part, kernels), kind="stable")[:most]
        aside = frozenset(part[i] for i in furthest)
        for _ in range(_LOOKS):
            scores = _held_out(material, part, aside | found, epoch_seconds, kernels)
            beyond = tail_of(scores, _BEYOND / len(part))
            highest_scores = np.argsort(-scores, kind="stable")[:most]
            found = frozenset(part[i] for i in highest_scores if scores[i] > beyond)
    return learn(material, [name for name in part if name not in found], epoch_seconds, kernels)


def _oddness(material: Material, part: Sequence[str], kernels: Kernels) -> F8:
    """How far out a client's queries lie on average, by rank among all, in features or in inputs: float64[clients]."""
    sampled = balanced(material, part, kernels)
    frame = frame_of(material, sampled, kernels)
    rows, owners = np.concatenate(sampled), owners_of(sampled)
    classes = frame.centroids_of(frame.labels(material.batch.text("predicted"), rows))
    odd = np.zeros(len(part))
    for letter, u in frame.projected(material.batch, rows, kernels).items():
        space = frame.spaces[letter]
        far = kernels.mahalanobis(u, space.whiten, space.centroids, classes)
        ranks = np.argsort(np.argsort(far, kind="stable"), kind="stable")
        np.maximum(odd, np.bincount(owners, ranks, len(part)) / np.bincount(owners, minlength=len(part)), out=odd)
    return odd


def _held_out(
    material: Material, part: Sequence[str], aside: frozenset[str], epoch_seconds: float, kernels: Kernels
) -> F8:
    """Each client's score in single queries, by a reference of the other folds without those ``aside``."""
    single = [name.startswith(_SINGLE) for name in kernels.CHANNELS]
    scores = np.zeros(len(part))
    for fold in range(_FOLDS):
        own = part[fold::_FOLDS]
        others = [name for i, name in enumerate(part) if i % _FOLDS != fold and name not in aside]
        reference = learn(material, others, epoch_seconds, kernels)
        scores[fold::_FOLDS] = highest(reference, material, own, epoch_seconds, kernels)[:, single].max(axis=1)
    return scores
