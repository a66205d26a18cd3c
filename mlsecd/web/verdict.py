"""The whole status in one line: the first thing that is read at three in the morning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mlsecd.records import Severity
from mlsecd.sinks.metrics_view import LogHealth

__all__ = ["TROUBLE", "Verdict", "judge"]

TROUBLE: Final = ("mismatch", "stale", "saturated")  # detector states that somebody should look into, the worst first


@dataclass(frozen=True, slots=True)
class Verdict:
    """``level`` is a severity, or ``synthetic``, ``impaired``, ``learning`` or ``quiet``."""

    level: str
    headline: str
    notes: tuple[str, ...]


def judge(
    active: Sequence[tuple[Severity, bool]],
    sources: Sequence[tuple[str, str]],
    detectors: Sequence[tuple[str, str]],
    log: LogHealth | None,
) -> Verdict:
    """Real findings speak first, then whatever keeps "quiet" from meaning much.

    Parameters
    ----------
    active
        Severity of each unresolved finding, and whether it is synthetic.
    sources, detectors
        Name and state of each.
    log
        The forensic log.
    """
    faults = _faults(sources, detectors, log)
    learning = sum(state == "learning" for _, state in detectors)
    tail = (f"{_count(learning, 'detector')} still learning what is ordinary here",) if learning else ()
    real = [severity for severity, synthetic in active if not synthetic]
    synthetic = len(active) - len(real)
    if real:
        worst = max(set(real), key=lambda severity: severity.rank)
        besides = (f"{_count(synthetic, 'synthetic finding')} besides: no real alarm",) if synthetic else ()
        return Verdict(str(worst), f"{_count(len(real), 'active finding')}, worst: {worst}", faults + tail + besides)
    if synthetic:
        tail = ("Synthetic: from the bundled recording, not a real alarm", *tail)
    if faults:
        return Verdict("impaired", "Quiet, but partly blind", faults + tail)
    if synthetic:
        return Verdict("synthetic", f"{_count(synthetic, 'synthetic finding')}, no real ones", tail)
    return Verdict("learning", "Quiet, still learning", tail) if learning else Verdict("quiet", "All quiet", ())


def _faults(
    sources: Sequence[tuple[str, str]], detectors: Sequence[tuple[str, str]], log: LogHealth | None
) -> tuple[str, ...]:
    """What fails. A source that this host cannot feed, and a detector that is off, are no failures."""
    faults = []
    if log is not None and log.blocked:
        faults.append("The forensic log is blocked" + (f": {log.why}" if log.why else ""))
    if log is not None and log.chain_ok is False:
        faults.append("The forensic log's hash chain is broken: it was changed after it was written")
    down = [name for name, state in sources if state == "down"]
    if down:
        faults.append(f"{_count(len(down), 'source')} down: {_listed(down)}")
    trouble = [f"{name} ({state})" for name, state in detectors if state in TROUBLE]
    if trouble:
        faults.append(f"{_count(len(trouble), 'detector')} impaired: {_listed(trouble)}")
    return tuple(faults)


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _count(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"
