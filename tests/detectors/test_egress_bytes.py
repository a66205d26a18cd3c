from __future__ import annotations

from typing import Any

import pytest
from gpu_drive import drive
from support import Case, requests

from mlsecd import kernels
from mlsecd.detectors.base import DetectorState, Section
from mlsecd.detectors.egress_bytes import DETECTOR, EgressBytes, Params
from mlsecd.errors import BaselineError
from mlsecd.records import Finding, Records, Severity, SocketSample, Traffic

GB = 1_000_000_000
GATEWAY, STRANGER = "10.0.0.9:443", "203.0.113.7:443"


def make(section: Section | None = None, **params: Any) -> EgressBytes:
    return DETECTOR(Params(**params), kernels, section)


def sent(ts: float, **peers: int) -> SocketSample:
    named = {name.replace("_", ".") + ":443": count for name, count in peers.items()}
    one = Traffic(
        pid=9,
        sent_bytes=sum(named.values()),
        exe="/opt/vllm/bin/python",
        uid=997,
        peers=tuple(named),
        peer_bytes=tuple(named.values()),
    )
    return SocketSample(ts=ts, seconds=60.0, traffic=(one,), interface_bytes=one.sent_bytes)


def leak(each: int, minutes: int = 60, served: float = 200, **peers: str) -> list[Records]:
    """A minute a sample; answers of 200 tokens, and bytes to a stranger."""
    records: list[Records] = []
    for minute in range(minutes):
        ts = 60.0 * minute
        records += [requests([ts + 1.0], output_tokens=served), sent(ts + 2, **{"203_0_113_7": each})]
    return records


def test_weights_that_leave_are_told_of_and_paged_when_it_is_one_peer() -> None:
    found = drive(make(), leak(GB))
    assert (found[0].ts, found[0].severity) == (4 * 60.0 + 2, Severity.MEDIUM)
    page = next(one for one in found if one.severity is Severity.HIGH)
    assert 16 * 60 <= page.ts <= 22 * 60
    assert page.subject == "/opt/vllm/bin/python uid=997 egress"
    assert page.evidence["peers"][0]["peer"] == "203.0.113.7"


def test_answers_explain_what_they_weigh() -> None:
    busy: list[Records] = []
    for minute in range(120):
        ts = 60.0 * minute
        busy += [requests([ts + 1.0] * 600, output_tokens=400), sent(ts + 2, **{"10_0_0_9": 240_000_000})]
    assert drive(make(), busy) == [], "29 GB in two hours, and every byte of it an answer"
    quiet = [one if isinstance(one, SocketSample) else requests([one.ts[0]], output_tokens=1) for one in busy]  # type: ignore[union-attr]
    assert drive(make(), quiet)


def test_storage_is_left_out() -> None:
    assert drive(make(ignore=("203.0.113.0/24",)), leak(GB)) == []
    assert drive(make(ignore=("203.0.114.0/24",)), leak(GB))
    with pytest.raises(ValueError, match="does not appear"):
        Params(ignore=("nonsense",))


def test_without_requests_it_is_information_only() -> None:
    found = drive(make(), [sent(60.0 * minute, **{"203_0_113_7": GB}) for minute in range(60)])
    assert {one.severity for one in found} == {Severity.INFO}
    assert "no requests are recorded" in found[0].reason


def test_a_day_later_it_is_forgotten() -> None:
    late = [requests([100_000.0], output_tokens=1), sent(100_001.0, **{"203_0_113_7": GB})]
    assert [one for one in drive(make(), [*leak(GB, 3), *late]) if one.ts > 1000] == []


def _hourly(count: int, each: int) -> list[Records]:
    return [sent(60.0 * minute + 1, **{"10_0_0_9": each // 60}) for minute in range(60 * count)]


def test_the_hosts_sum_against_its_busiest_hour() -> None:
    fit = DETECTOR.fit(_hourly(26, 6 * GB), Params(), kernels)
    assert fit is not None
    assert fit.section is not None
    assert fit.section.header["hour_bytes"] == pytest.approx(6 * GB, rel=0.01)
    found: list[Finding] = drive(make(fit.section, ignore=("0.0.0.0/0",)), _hourly(2, 20 * GB))
    assert {(one.subject_kind, one.severity) for one in found} == {("host", Severity.LOW)}
    assert drive(make(fit.section, ignore=("0.0.0.0/0",)), _hourly(2, 10 * GB)) == []
    short = DETECTOR.fit(_hourly(3, GB), Params(), kernels)
    assert short is not None
    assert (short.refused or "").startswith("3 whole hours")
    assert DETECTOR.fit([], Params(), kernels) is None
    with pytest.raises(BaselineError, match="cannot be used"):
        make(Section({}, {}))


def test_standing() -> None:
    detector = make()
    assert detector.standing().state is DetectorState.STALE
    drive(detector, [sent(0.0)])
    assert detector.standing().why == "no baseline: the host's sum is not judged"


def conformance() -> Case:
    def flood(n: int) -> list[Records]:
        made: list[Records] = []
        for at in range(n):
            made += [requests([20.0 * at], host=f"h{at}"), SocketSample(ts=20.0 * at + 1, seconds=1, host=f"h{at}")]
        return made

    return Case(DETECTOR, Params(), leak(GB, 40), Params(), flood)
