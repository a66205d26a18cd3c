"""The ledger: identity, life and limits of findings, in event time and in any slices."""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsecd.errors import StateError
from mlsecd.findings.ledger import Ledger
from mlsecd.records import Finding, Severity, Status
from mlsecd.windows.packing import pack


def raw(ts: float = 0.0, subject: str = "k-a", severity: Severity = Severity.MEDIUM, **other: Any) -> Finding:
    base = Finding(
        ts=ts,
        detector="extraction_account",
        version=1,
        subject_kind="client",
        subject=subject,
        severity=severity,
        score=2.0,
        threshold=1.0,
        reason="too even",
        action="look",
    )
    return replace(base, **other)


def told(lines: list[Finding]) -> list[tuple[float, str, str, str]]:
    return [(line.ts, line.subject, str(line.status), str(line.severity)) for line in lines]


def test_first_evidence_is_new_and_its_id_names_what_it_is() -> None:
    (line,) = Ledger().take([raw(12.5)])
    assert line.status is Status.NEW
    assert line.id == hashlib.blake2b(b"extraction_account\x001\x00client\x00k-a\x0012.5").hexdigest()[:16]
    (synthetic,) = Ledger().take([raw(12.5, synthetic=True)])
    assert (
        synthetic.id
        == (hashlib.blake2b(b"extraction_account\x001\x00client\x00k-a\x0012.5\x00synthetic").hexdigest()[:16])
    )


def test_id_does_not_depend_on_the_kind_of_number() -> None:
    ids = {Ledger().take([raw(ts)])[0].id for ts in (np.float64(3.0), 3.0, 3)}
    assert len(ids) == 1


def test_later_evidence_is_absorbed_until_it_says_something_new() -> None:
    ledger = Ledger(update_after_seconds=300)
    (new,) = ledger.take([raw(0)])
    assert ledger.take([raw(10), raw(299.9)]) == []
    assert ledger.absorbed == 2
    (later,) = ledger.take([raw(300)])
    assert (later.status, later.id) == (Status.UPDATE, new.id)
    assert later.evidence["life"] == {"first_ts": 0.0, "last_ts": 300.0, "count": 4}
    assert ledger.take([raw(301), raw(599)]) == []  # the throttle counts from the last line


@pytest.mark.parametrize(
    ("change", "tells"),
    [
        ({"severity": Severity.HIGH}, True),
        ({"certified": True}, True),
        ({"severity": Severity.LOW}, False),
        ({"severity": Severity.LOW, "certified": True}, False),
        ({"score": 99.0, "reason": "other words"}, False),
    ],
)
def test_a_rise_is_told_at_once(change: dict[str, Any], tells: bool) -> None:
    ledger = Ledger()
    ledger.take([raw(0)])
    lines = ledger.take([raw(1, **change)])
    assert [line.status for line in lines] == ([Status.UPDATE] if tells else [])


def test_a_finding_does_not_flap() -> None:
    ledger = Ledger(update_after_seconds=300)
    severities = [Severity.LOW, Severity.HIGH, Severity.LOW, Severity.HIGH, Severity.LOW, Severity.HIGH]
    lines = ledger.take([raw(float(at), severity=one) for at, one in enumerate(severities)])
    assert told(lines) == [(0.0, "k-a", "new", "low"), (1.0, "k-a", "update", "high")]
    (later,) = ledger.take([raw(400, severity=Severity.INFO)])
    assert later.severity is Severity.HIGH
    ledger.take([raw(401, severity=Severity.HIGH, certified=True)])
    assert ledger.take([raw(800, severity=Severity.HIGH)])[0].certified


def test_louder_evidence_is_told_once_and_does_not_borrow_a_certificate() -> None:
    ledger = Ledger(update_after_seconds=300)
    ledger.take([raw(0, severity=Severity.LOW, certified=True, reason="a little, for sure")])
    lines = ledger.take([raw(float(at), severity=Severity.HIGH, reason="much, perhaps") for at in range(1, 21)])
    assert [(line.severity, line.certified, line.reason) for line in lines] == [(Severity.HIGH, False, "much, perhaps")]
    assert ledger.take([raw(100, severity=Severity.LOW, certified=True)]) == []
    (active,) = ledger.active()
    assert (active.severity, active.certified, active.reason) == (Severity.HIGH, False, "much, perhaps")


@pytest.mark.parametrize(
    ("strong", "weak"),
    [
        ({"severity": Severity.HIGH, "certified": True}, {"severity": Severity.LOW}),
        ({"severity": Severity.HIGH}, {"severity": Severity.MEDIUM}),
        ({"certified": True}, {}),
    ],
)
def test_weaker_evidence_does_not_take_the_words_of_a_page(strong: dict[str, Any], weak: dict[str, Any]) -> None:
    """A thief whose repeats are a ticket, too, must not turn its own page into one that says "its client is broken"."""
    ledger = Ledger(update_after_seconds=300)
    channels = [{"channel": "ood_f_tail", "count": 34, "of": 40, "expected": 0.2, "score": 31.0}] * 4
    theft = raw(0, reason="it copies", score=9.0, evidence={"channels": channels, "queries": 40}, **strong)
    ticket = {"reason": "its client is broken", "score": 3.5, "threshold": 3.0, "evidence": {"channels": []}, **weak}
    ledger.take([theft])
    (line,) = ledger.take([raw(300, **ticket)])
    assert (line.ts, line.status) == (300.0, Status.UPDATE)
    assert (line.severity, line.certified, line.reason, line.score) == (
        theft.severity,
        theft.certified,
        "it copies",
        9.0,
    )
    assert line.evidence["channels"] == channels
    assert line.evidence["latest"] == {
        "severity": str(weak.get("severity", Severity.MEDIUM)),
        "certified": False,
        "score": 3.5,
        "threshold": 3.0,
        "reason": "its client is broken",
    }
    assert ledger.active()[0].reason == "it copies"
    (again,) = ledger.take([raw(700, reason="it copies more", **strong)])
    assert again.reason == "it copies more"
    assert "latest" not in again.evidence
    ledger.take([raw(1_000, **ticket)])
    (resolved,) = ledger.close(9_999)
    assert resolved.reason.endswith("it copies more")
    assert "latest" not in resolved.evidence
    assert resolved.evidence["life"] == {"first_ts": 0.0, "last_ts": 1_000.0, "count": 4}


def test_silence_resolves_and_the_next_evidence_is_another_finding() -> None:
    ledger = Ledger(resolve_after_seconds=900)
    (new,) = ledger.take([raw(0)])
    ledger.take([raw(100)])
    assert ledger.close(990) == []
    (resolved,) = ledger.close(1000)
    assert (resolved.ts, resolved.status, resolved.id) == (1000.0, Status.RESOLVED, new.id)
    assert resolved.evidence["life"] == {"first_ts": 0.0, "last_ts": 100.0, "count": 2}
    assert "too even" in resolved.reason
    assert ledger.close(5000) == []
    (again,) = ledger.take([raw(5001)])
    assert again.status is Status.NEW
    assert again.id != new.id


def test_evidence_after_a_long_gap_without_a_close_goes_on() -> None:
    """Only a close resolves: a file that ends, or a stretch without records, says nothing."""
    ledger = Ledger(resolve_after_seconds=900)
    ledger.take([raw(0)])
    (line,) = ledger.take([raw(5000)])
    assert line.status is Status.UPDATE


def test_resolved_lines_come_in_sorted_order_and_keep_small_evidence() -> None:
    ledger = Ledger(resolve_after_seconds=10)
    evidence = {"gpu": "GPU-1", "text": "x" * 1000, "list": list(range(1000)), "n": 3, "none": None}
    ledger.take([raw(0, subject=name, evidence=evidence) for name in "cab"])
    lines = ledger.close(10)
    assert [line.subject for line in lines] == ["a", "b", "c"]
    assert all(
        {key: value for key, value in line.evidence.items() if key != "life"} == {"gpu": "GPU-1", "n": 3, "none": None}
        for line in lines
    )


def test_resolve_after_differs_by_detector() -> None:
    ledger = Ledger(resolve_after_seconds=900, resolve_after={"gpu_lost": 60})
    ledger.take([raw(0), raw(0, detector="gpu_lost", subject_kind="gpu", subject="GPU-1")])
    assert [line.detector for line in ledger.close(60)] == ["gpu_lost"]


def test_keys_are_kept_apart() -> None:
    ledger = Ledger()
    variants = [
        raw(0),
        raw(0, subject="k-b"),
        raw(0, subject_kind="campaign"),
        raw(0, detector="extraction_other"),
        raw(0, synthetic=True),
    ]
    lines = ledger.take(variants)
    assert all(line.status is Status.NEW for line in lines)
    assert len({line.id for line in lines}) == len(variants)


def test_a_clock_set_back_neither_crashes_nor_resolves_early() -> None:
    ledger = Ledger(resolve_after_seconds=900, update_after_seconds=300)
    ledger.take([raw(100_000)])
    assert ledger.take([raw(50_000)]) == []  # evidence from before: absorbed, the life goes on
    assert ledger.close(50_010) == []
    assert ledger.close(50_900) == []  # its silence counts from the first close of the new time
    assert len(ledger.take([raw(50_905)])) == 1  # and so does the throttle
    assert ledger.close(51_800) == []
    assert [line.ts for line in ledger.close(51_805)] == [51_805.0]


@pytest.mark.parametrize("ts", [float("nan"), float("inf"), float("-inf")])
def test_a_time_that_is_none_does_no_harm(ts: float) -> None:
    ledger = Ledger(resolve_after_seconds=900)
    assert len(ledger.take([raw(ts)])) == 1
    ledger.take([raw(ts), raw(5)])
    ledger.close(10)
    ledger.close(10_000)
    assert len(ledger) == 0
    ledger.snapshot()


def test_the_limit_never_hides_a_new_subject() -> None:
    ledger = Ledger(limit=10, resolve_after_seconds=5000)
    flood = [raw(float(at), subject=f"k-{at}", severity=Severity.INFO) for at in range(1000)]
    ledger.take([raw(0, subject="grave", severity=Severity.CRITICAL)])
    lines = ledger.take(flood)
    assert [line.subject for line in lines] == [one.subject for one in flood]
    assert len(ledger) <= 20
    ledger.close(1000)
    kept = [one.subject for one in ledger.active()]
    assert kept == ["grave", *(f"k-{at}" for at in range(999, 990, -1))]
    assert ledger.evicted == 1001 - 10


def test_the_limit_evicts_the_least_severe_then_the_oldest() -> None:
    ledger = Ledger(limit=2)
    ledger.take([raw(5, "a", Severity.HIGH), raw(1, "b"), raw(2, "c"), raw(9, "d", Severity.LOW)])
    assert ledger.close(10) == []
    assert [one.subject for one in ledger.active()] == ["a", "c"]
    (again,) = ledger.take([raw(11, "b")])
    assert again.status is Status.NEW


def test_active_says_what_stands() -> None:
    ledger = Ledger()
    ledger.take([raw(1), raw(2), raw(3, "z", Severity.CRITICAL, synthetic=True)])
    worst, other = ledger.active()
    assert (worst.subject, worst.severity, worst.synthetic) == ("z", Severity.CRITICAL, True)
    assert (other.subject, other.first_ts, other.last_ts, other.count) == ("k-a", 1.0, 2.0, 2)
    assert other.certified is False
    assert other.id


EVENTS = st.lists(
    st.tuples(
        st.floats(0, 60, allow_nan=False),
        st.sampled_from("abc"),
        st.sampled_from(list(Severity)),
        st.booleans(),
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(EVENTS, st.randoms(use_true_random=False), st.booleans())
def test_any_slicing_and_a_restart_anywhere_give_the_same_lines(
    steps: list[tuple[float, str, Severity, bool, bool]], rng: random.Random, restart: bool
) -> None:
    findings, ts = [], 0.0
    for gap, subject, severity, certified, synthetic in steps:
        ts += gap
        findings.append(raw(ts, subject, severity, certified=certified, synthetic=synthetic))

    def run(cut: bool) -> list[dict[str, Any]]:
        ledger = Ledger(resolve_after_seconds=90, update_after_seconds=50, limit=4)
        lines: list[Finding] = []
        for tick, group in itertools.groupby(findings, key=lambda one: int(one.ts // 10)):
            lines += ledger.close(tick * 10.0)
            waiting = list(group)
            while waiting:
                size = rng.randint(1, len(waiting)) if cut else len(waiting)
                lines += ledger.take(waiting[:size])
                waiting = waiting[size:]
                if cut and restart:
                    blob = ledger.snapshot()
                    ledger = Ledger(resolve_after_seconds=90, update_after_seconds=50, limit=4)
                    ledger.restore(blob)
        return [line.line() for line in [*lines, *ledger.close(ts + 1000)]]

    assert run(cut=True) == run(cut=False)


def test_detectors_that_arrive_interleaved_or_one_after_the_other_give_the_same_lines() -> None:
    """Batches of a stream change how detectors' findings mix; at the limit, too, the lines must be the same."""
    one = [raw(float(at), f"k-{at}", detector="extraction_a") for at in range(15)]
    two = [raw(float(at), f"k-{at}", detector="extraction_b", severity=Severity.LOW) for at in range(15)]
    results = []
    for order in ([*one, *two], [finding for pair in zip(one, two, strict=True) for finding in pair]):
        ledger = Ledger(limit=20)
        lines = ledger.take(order) + ledger.close(20) + ledger.take(order) + ledger.close(10_000)
        results.append(sorted((line.detector, line.subject, str(line.status), line.id) for line in lines))
    assert results[0] == results[1]


def test_a_snapshot_carries_everything_and_any_damage_is_refused() -> None:
    ledger = Ledger()
    evidence = {"array": np.arange(3), "scalar": np.float32(1.5), "tuple": (1, 2), "set": {"b", "a"}}
    ledger.take([raw(1, evidence=evidence), raw(2, "x", synthetic=True, atlas=("AML.T0024.002",))])
    ledger.take([raw(3)])
    blob = ledger.snapshot()
    twin = Ledger()
    twin.restore(blob)
    assert twin.active() == ledger.active()
    assert twin.absorbed == 1
    assert [line.line() for line in twin.close(9999)] == [line.line() for line in ledger.close(9999)]
    for cut in range(len(blob)):
        with pytest.raises(StateError):
            Ledger().restore(blob[:cut])
    with pytest.raises(StateError):
        Ledger().restore(pack(1, {"absorbed": 0, "evicted": 0, "lives": [{"line": 1}]}))
    with pytest.raises(StateError):
        Ledger().restore(pack(2, {}))


def test_text_that_is_no_unicode_breaks_nothing() -> None:
    ledger = Ledger()
    bad = "/tmp/\udcff\ud800"
    (line,) = ledger.take([raw(1, bad, reason=bad, evidence={"exe": bad, bad: [bad], "o": object(), "f": np.inf})])
    assert line.subject == r"/tmp/\udcff\ud800"
    str(line.line()).encode()
    ledger.snapshot()
    assert ledger.take([raw(2, bad)]) == []  # the same subject


def test_evidence_is_plain_and_a_cycle_ends() -> None:
    loop: list[Any] = []
    loop.append(loop)
    (line,) = Ledger().take([raw(1, evidence={"loop": loop, "huge": 2**80, 3: b"x", "nan": np.array([np.nan])})])
    assert line.evidence["huge"] == str(2**80)
    assert line.evidence["3"] == "b'x'"
    assert line.evidence["nan"] == [None]
