from __future__ import annotations

from typing import Any

import pytest
from gpu_drive import drive
from support import Case

from mlsecd import kernels
from mlsecd.detectors._allow import Allow
from mlsecd.detectors.base import DetectorState, Section
from mlsecd.detectors.integrity_weights import DETECTOR, IntegrityWeights, Params
from mlsecd.errors import BaselineError
from mlsecd.records import FileSample, FileUse, Records, Severity, WatchedFile

MODEL = "/models/m.safetensors"
READERS = (Allow(exe="/opt/vllm/**", uid=997),)


def make(section: Section | None = None, **params: Any) -> IntegrityWeights:
    return DETECTOR(Params(**params), kernels, section)


def file(path: str = MODEL, **changes: Any) -> WatchedFile:
    usual: dict[str, Any] = {
        "device": 1,
        "inode": 2,
        "size": 100,
        "mtime_ns": 3,
        "ctime_ns": 4,
        "mode": 0o640,
        "uid": 0,
        "sampled": "aa",
        "sha256": "bb",
    }
    return WatchedFile(path=path, **{**usual, **changes})


def use(exe: str | None = "/opt/vllm/bin/python", uid: int | None = 997, **fields: Any) -> FileUse:
    known = {"path": MODEL, "pid": 100, "how": "mapped", "start_ticks": 7, "cgroup": "/x", **fields}
    return FileUse(exe=exe, uid=uid, **known)


def sample(ts: float, *uses: FileUse, files: tuple[WatchedFile, ...] = (file(),), **fields: Any) -> FileSample:
    return FileSample(ts=ts, files=files, uses=uses, **fields)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 101, "mtime_ns": 9}, "changed: 101 bytes, and 100 before"),
        ({"sampled": "cc", "mtime_ns": 9}, "changed: its sampled digest differs"),
        ({"sha256": "cc", "mtime_ns": 9}, "changed: its SHA-256 digest differs"),
        ({"sampled": "cc"}, "changed: its sampled digest differs; its modification time was not, or was put back"),
        ({"mtime_ns": 9, "ctime_ns": 9}, None),  # touched
        ({"inode": 9, "mtime_ns": 9}, None),  # copied anew: the content is the same
        ({"sampled": None, "sha256": None}, None),  # not read is not changed
    ],
)
def test_a_file_changes_when_its_content_does(change: dict[str, Any], words: str | None) -> None:
    found = drive(make(), [sample(0.0), sample(10.0, files=(file(**change),))])
    assert [(one.severity, one.subject) for one in found] == ([(Severity.HIGH, MODEL)] if words else [])
    if words:
        assert found[0].reason == f'"{MODEL}" {words}'


def test_a_change_is_told_again_until_it_is_put_back() -> None:
    records = [sample(10.0 * i, files=(file(sampled="cc" if 5 <= i < 70 else "aa"),)) for i in range(100)]
    assert [one.ts for one in drive(make(), records)] == [50.0, 350.0, 650.0]


def test_a_foreign_reader_pages_and_the_server_does_not() -> None:
    thief = use("/usr/bin/scp", 1000, pid=666, how="opened", unit="session-3.scope")
    detector = make(readers=READERS)
    (found,) = drive(detector, [sample(0.0, use(), thief), sample(10.0, use(), thief)])
    assert (found.severity, found.subject_kind) == (Severity.HIGH, "process")
    assert found.reason == f'"/usr/bin/scp" (pid 666, uid 1000, session-3.scope) opened "{MODEL}"'
    assert detector.standing().state is DetectorState.ARMED
    assert drive(make(), [sample(0.0, thief)]) == [], "without readers it learns"


def test_a_reader_that_was_gone_at_once_is_a_warning_and_an_unreadable_one_is_no_verdict() -> None:
    ghost = use(None, None, pid=666, how="opened", start_ticks=None, cgroup=None)
    (found,) = drive(make(readers=READERS), [sample(0.0, ghost)])
    assert found.severity is Severity.MEDIUM
    assert drive(make(readers=READERS), [sample(0.0, use(None, 997))]) == []


def test_a_honey_file_takes_nobody() -> None:
    trap = "/models/backup-2024.pt"
    found = drive(make(readers=READERS), [sample(0.0, use(path=trap), files=(file(), file(trap, honey=True)))])
    assert [(one.severity, one.evidence["kind"]) for one in found] == [(Severity.CRITICAL, "honey")]


def test_permissions() -> None:
    (found,) = drive(make(), [sample(0.0, files=(file(mode=0o646),))])
    assert (found.severity, found.evidence["mode"]) == (Severity.MEDIUM, "0o646")
    assert drive(make(), [sample(0.0, files=(file(mode=0o644),))]) == []
    assert [one.severity for one in drive(make(private=True), [sample(0.0, files=(file(mode=0o644),))])] == [
        Severity.LOW
    ]


def test_a_file_that_is_gone_is_told_of_once_a_deployment_would_be_over() -> None:
    records = [sample(0.0), *(sample(10.0 * i, files=(), missing=(MODEL,)) for i in range(1, 3))]
    assert [(one.ts, one.severity, one.reason) for one in drive(make(), records)] == [
        (20.0, Severity.LOW, f'"{MODEL}" is gone')
    ]
    assert drive(make(), [*records[:2], sample(20.0)]) == []


def test_the_baseline_pins_files_and_proposes_readers() -> None:
    recorded = [sample(0.0, use(), use("/usr/bin/borg", 0, unit="backup.service"))]
    fit = DETECTOR.fit(recorded, Params(), kernels)
    assert fit is not None
    assert fit.section is not None
    assert [one["exe"] for one in fit.section.header["allow"]] == ["/opt/vllm/bin/python", "/usr/bin/borg"]
    detector = make(fit.section)
    found = drive(detector, [sample(0.0, use(), use("/tmp/x", 1), files=(file(sha256="cc"),))])
    assert {one.evidence["kind"] for one in found} == {"changed", "reader"}, "also what changed while nobody looked"
    assert DETECTOR.fit([], Params(), kernels) is None
    with pytest.raises(BaselineError, match="cannot be used"):
        make(Section({"files": 7}, {}))


def test_names_chosen_by_others_stay_on_their_line() -> None:
    odd = "/models/a\x1b[2J\nb"
    found = drive(make(readers=READERS), [sample(0.0, use("/tmp/\x1b", path=odd), files=(file(odd, mode=0o666),))])
    assert len(found) == 2
    assert all(text.isprintable() for one in found for text in (one.reason, one.subject, str(one.evidence)))


def test_standing_without_files_is_off() -> None:
    assert make().standing().state is DetectorState.OFF


def conformance() -> Case:
    thief = use("/usr/bin/scp", 1000, pid=666)
    records: list[Records] = [
        sample(10.0 * i, use(), *((thief,) if i > 20 else ()), files=(file(sampled="aa" if i < 40 else "cc"),))
        for i in range(60)
    ]
    records += [sample(600.0 + 10 * i, files=(), missing=(MODEL,)) for i in range(5)]

    def flood(n: int) -> list[Records]:
        return [sample(20.0 * i, use(path=f"/m/{i}"), files=(file(f"/m/{i}"),), host=f"h{i}") for i in range(n)]

    return Case(DETECTOR, Params(readers=READERS), records, Params(readers=READERS), flood)
