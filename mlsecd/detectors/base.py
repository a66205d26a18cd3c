"""What every detector is: a pure fold over records, keyed so that it can be sharded."""

from __future__ import annotations

import enum
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlsecd.kernels import Kernels
from mlsecd.records import Finding, Kind, Records

__all__ = ["Arrays", "Detector", "DetectorState", "Fit", "Interval", "Maturity", "Params", "Section", "Standing", "rng"]

Arrays = Mapping[str, NDArray[Any]]


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A detector's configuration: every field typed, bounded and described (``msgspec.Meta``)."""


class Maturity(enum.StrEnum):
    """How far a detector can be trusted, after Falco's rule ladder."""

    STABLE = "stable"
    INCUBATING = "incubating"
    SANDBOX = "sandbox"


class DetectorState(enum.StrEnum):
    """What a detector can do just now: ``mlsecd_detector_state{detector,state}``."""

    LEARNING = "learning"
    ARMED = "armed"
    SHIFTED = "shifted"
    STALE = "stale"
    MISMATCH = "mismatch"
    SATURATED = "saturated"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Standing:
    """A detector's state, why, and a few bounded numbers for metrics, ``doctor`` and the landing page.

    Gauge names are base-unit metric suffixes (``calibration_clients``, ``reference_age_seconds``);
    no per-client score may stand here: an open metrics page would be the attacker's oracle.
    """

    state: DetectorState
    why: str = ""
    gauges: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Interval:
    """A closed piece of event time, ``[start, end)``, seconds."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Section:
    """A detector's part of a baseline: arrays and a small JSON-able header."""

    header: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Fit:
    """What ``fit`` made: a section, or the reason and the need where the data cannot support one."""

    section: Section | None
    refused: str | None = None  # what is missing, in words for an operator
    notes: tuple[str, ...] = ()


class Detector(ABC):
    """One file, one detector. The conformance suite runs on every subclass that the registry finds.

    Class attributes declare what it is; metrics, configuration and docs come from them. A detector
    reads neither clock nor disk; its state advances by row or by record time, never by call.
    Findings must not depend on how a stream is cut into batches, sharded by ``key``, or restarted.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    consumes: ClassVar[frozenset[Kind]]
    key: ClassVar[str]  # client, gpu, model or host: what observe() may be sharded by
    maturity: ClassVar[Maturity]
    atlas: ClassVar[tuple[str, ...]] = ()
    owasp: ClassVar[tuple[str, ...]] = ()
    summary: ClassVar[str]  # one sentence for docs, doctor and the landing page
    action: ClassVar[str]  # what to do when it fires
    blind_spots: ClassVar[tuple[str, ...]]
    resolve_after_seconds: ClassVar[float | None] = None  # event time without evidence; None: as configured
    Params: ClassVar[type[Params]]

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:  # noqa: ARG002
        """Make it ready: ``section`` is its part of the baseline, ``None`` to learn from the stream.

        Raises :class:`~mlsecd.errors.BaselineError` where the section does not fit.
        """
        self.params = params
        self.kernels = kernels

    @abstractmethod
    def observe(self, records: Records) -> list[Finding]:
        """Fold rows or one record, in event-time order; return what was found, in that order."""

    def states(self) -> Iterable[tuple[str, Any]]:
        """All (key, state) pairs that ``close`` needs, in any order; the engine sorts and merges them."""
        return ()

    def close(self, interval: Interval, states: Iterable[tuple[str, Any]]) -> list[Finding]:  # noqa: ARG002
        """Judge across keys at the end of an interval; ``states`` of all shards, sorted by key."""
        return []

    @abstractmethod
    def standing(self) -> Standing:
        """What it can do just now, and why."""

    @abstractmethod
    def snapshot(self) -> bytes:
        """Its whole state, versioned, never pickle."""

    @abstractmethod
    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state; :class:`~mlsecd.errors.StateError` where it does not fit."""

    @classmethod
    def fit(cls, records: Iterable[Records], params: Any, kernels: Kernels) -> Fit | None:  # noqa: ARG003
        """Learn a baseline section from ordinary records; ``None``: this detector has none to learn."""
        return None

    def finding(  # noqa: PLR0913 - a finding has this many sides
        self,
        *,
        ts: float,
        subject_kind: str,
        subject: str,
        severity: Any,
        score: float,
        threshold: float,
        reason: str,
        evidence: dict[str, Any],
        certified: bool = False,
        synthetic: bool = False,
        action: str | None = None,
    ) -> Finding:
        """A finding in this detector's name."""
        return Finding(
            ts=float(ts),
            detector=self.name,
            version=self.version,
            subject_kind=subject_kind,
            subject=subject,
            severity=severity,
            score=float(score),
            threshold=float(threshold),
            reason=reason,
            action=action or self.action,
            evidence=evidence,
            certified=certified,
            synthetic=bool(synthetic),
            atlas=self.atlas,
            owasp=self.owasp,
        )


def rng(detector: str, key: str, interval: float) -> np.random.Generator:
    """A counter-based generator for one (detector, key, interval): the same draws in any run."""
    digest = hashlib.blake2b(f"{detector}\0{key}\0{interval!r}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
