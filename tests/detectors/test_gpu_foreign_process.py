from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from gpu_drive import drive, gpu, ordered, process, seconds, status, table
from support import Case, requests

from mlsecd import kernels
from mlsecd.detectors._allow import Allow, allows
from mlsecd.detectors.base import DetectorState, Interval, Section
from mlsecd.detectors.gpu_foreign_process import DETECTOR, GpuForeignProcess, Params
from mlsecd.errors import BaselineError
from mlsecd.records import Depth, GpuProcess, GpuSample, Process, ProcessTable, Records, Severity

SERVER = process(100, "/opt/vllm/bin/python", unit="vllm.service")
MINER = process(666, "/tmp/xmrig", uid=1000, ppid=100, cmdline=("xmrig", "-o", "pool:3333"))
ALLOW = (Allow(exe="/opt/vllm/**", unit="vllm.service"),)


def make(*allow: Allow, section: Section | None = None, **params: Any) -> GpuForeignProcess:
    return DETECTOR(Params(allow=allow, **params), kernels, section)


def stream(
    end: float, *, pids: Any, shown: Any, tables: float = 5.0, uuid: str = "GPU-a", **fields: Any
) -> list[Records]:
    """A sample a second, a table at 0.5 s and then each ``tables``; both as functions of time."""
    samples: list[Records] = [gpu(ts, pids(ts), uuid, **fields) for ts in seconds(0, end)]
    return [*samples, *(table(ts + 0.5, *shown(ts + 0.5), **fields) for ts in seconds(0, end, tables))]


def joined(ts: float, since: float, *extra: Any) -> tuple[Any, ...]:
    """The server, and more from a time on."""
    server = SERVER if extra and isinstance(extra[0], Process) else SERVER.pid
    return (server, *(extra if ts >= since else ()))


def foreign(end: float = 60, **fields: Any) -> list[Records]:
    return stream(end, pids=lambda ts: joined(ts, 20, 666), shown=lambda ts: joined(ts, 20, MINER), **fields)


def test_a_process_that_no_entry_allows_is_told_of_and_repeated() -> None:
    found = drive(make(*ALLOW), foreign())
    # NVML shows it at 20, the table of 20.5 names it, and the sample at 21 still shows it
    assert [one.ts for one in found] == [21.0, 51.0]
    first = found[0]
    assert first.severity is Severity.HIGH
    assert (first.subject_kind, first.subject) == ("process", "/tmp/xmrig uid=1000 gpu=GPU-a")
    assert first.reason == (
        '"/tmp/xmrig" (pid 666, uid 1000, no systemd unit) holds 1.0 GiB of GPU-a '
        "and does not match the only allow entry"
    )
    assert first.evidence == {
        "gpu": "GPU-a",
        "pid": 666,
        "start_ticks": 6660,
        "exe": "/tmp/xmrig",
        "uid": 1000,
        "unit": None,
        "container": None,
        "cmdline": "xmrig -o pool:3333",
        "ppid": 100,
        "parent_exe": "/opt/vllm/bin/python",
        "sha256": None,
        "used_memory_bytes": 1 << 30,
        "kind": "foreign",
        "host": "",
        "pids": [666],
        "starts": 1,
        "first_ts": 21.0,
    }
    assert not first.synthetic


def test_an_allowed_process_is_not() -> None:
    detector = make(*ALLOW)
    assert drive(detector, stream(60, pids=lambda _: (100,), shown=lambda _: (SERVER,))) == []
    assert detector.standing().state is DetectorState.ARMED
    assert detector.standing().why == ""


def test_the_daemon_itself_as_a_guest_is_nobodys_to_judge() -> None:
    """It is in no allow list, and NVML shows it; another that looks just like it is foreign."""
    samples: list[Records] = []
    for ts in seconds(0, 60):
        own = GpuProcess(pid=MINER.pid, used_memory_bytes=1 << 29, own=True)
        samples.append(GpuSample(ts=ts, gpu="GPU-a", processes=(own, GpuProcess(pid=100, used_memory_bytes=1 << 30))))
    tables = [table(ts + 0.5, SERVER, MINER) for ts in seconds(0, 60, 5)]
    assert drive(make(*ALLOW), [*samples, *tables]) == []
    assert [one.subject for one in drive(make(*ALLOW), foreign(25))] == ["/tmp/xmrig uid=1000 gpu=GPU-a"]


def test_an_allowed_executable_elsewhere_is_foreign() -> None:
    other = process(100, "/opt/vllm/bin/python", unit="session-3.scope")
    found = drive(make(*ALLOW), stream(10, pids=lambda _: (100,), shown=lambda _: (other,)))
    assert [one.subject for one in found] == ["/opt/vllm/bin/python uid=997 gpu=GPU-a"]


def test_without_a_policy_it_learns_and_says_so() -> None:
    detector = make()
    assert drive(detector, foreign()) == []
    standing = detector.standing()
    assert standing.state is DetectorState.LEARNING
    assert standing.why == "no allow list: only deleted, in-memory and hidden programs are reported"
    assert standing.gauges["gpu_processes"] == 2.0


@pytest.mark.parametrize("allow", [(), ALLOW, (Allow(uid=1000),), (Allow(exe="/**"),)])
def test_a_program_in_memory_is_critical_whatever_is_allowed(allow: tuple[Allow, ...]) -> None:
    ghost = process(666, "/memfd:x (deleted)", uid=1000)
    found = drive(make(*allow), stream(10, pids=lambda _: (666,), shown=lambda _: (ghost,)))
    assert [(one.ts, one.severity, one.subject) for one in found] == [
        (1.0, Severity.CRITICAL, "memfd uid=1000 gpu=GPU-a")
    ]
    assert "never a file" in found[0].reason


@pytest.mark.parametrize(
    ("allow", "intact", "severity", "words"),
    [
        (ALLOW, False, Severity.MEDIUM, "its path is allowed"),
        ((Allow(exe="/opt/other/**"),), False, Severity.HIGH, "no allow entry covers its path"),
        ((), True, Severity.MEDIUM, "it was there when the process came"),
        ((), False, Severity.HIGH, "it was gone when first looked at"),
    ],
)
def test_a_deleted_executable(allow: tuple[Allow, ...], intact: bool, severity: Severity, words: str) -> None:
    gone = process(100, "/opt/vllm/bin/python (deleted)", unit="vllm.service")
    records = stream(30, pids=lambda _: (100,), shown=lambda ts: (SERVER if intact and ts < 10 else gone,))
    found = [one for one in drive(make(*allow), records) if one.evidence["kind"] == "deleted"]
    assert [(one.ts, one.severity) for one in found] == [(11.0 if intact else 1.0, severity)]
    assert found[0].subject == "/opt/vllm/bin/python uid=997 gpu=GPU-a"
    assert words in found[0].reason


def test_a_table_from_before_the_process_came_does_not_count() -> None:
    """At 19.9 the pid was still a shell; on the GPU it is what it became."""
    shell = process(200, "/bin/bash")
    late = process(200, "/opt/vllm/bin/python", unit="vllm.service")
    records: list[Records] = [gpu(ts, (200,) if ts >= 20 else ()) for ts in seconds(0, 30)]
    assert drive(make(*ALLOW), [*records, table(19.9, shell), table(25.5, late)]) == []


def test_a_process_that_became_another_program_is_judged_as_what_it_is() -> None:
    later = process(100, "/tmp/other", unit="vllm.service")
    found = drive(make(*ALLOW), stream(20, pids=lambda _: (100,), shown=lambda ts: (SERVER if ts < 10 else later,)))
    assert [(one.ts, one.evidence["exe"]) for one in found] == [(11.0, "/tmp/other")]


def test_one_that_ends_before_it_is_confirmed_is_not_told_of() -> None:
    records = stream(30, pids=lambda ts: joined(ts, 20, 666) if ts <= 20 else (100,), shown=lambda _: (SERVER, MINER))
    assert drive(make(*ALLOW), records) == []


def test_it_stops_when_the_process_ends() -> None:
    records = stream(300, pids=lambda ts: (100, 666) if ts < 100 else (100,), shown=lambda _: (SERVER, MINER))
    assert [one.ts for one in drive(make(*ALLOW), records)] == [1.0, 31.0, 61.0, 91.0]


def test_samples_without_a_process_list_change_nothing() -> None:
    every = foreign()
    thinned = [gpu(one.ts, None) if isinstance(one, GpuSample) and one.ts % 3 else one for one in every]
    assert [one.ts for one in drive(make(*ALLOW), thinned)] == [27.0, 57.0]
    silent = [gpu(one.ts, None) if isinstance(one, GpuSample) else one for one in every]
    assert drive(make(*ALLOW), silent) == []


def hidden(end: float = 60, **fields: Any) -> list[Records]:
    return stream(end, pids=lambda ts: joined(ts, 20, 666), shown=lambda _: (SERVER,), **fields)


def test_a_hidden_pid_needs_two_whole_tables_and_is_critical() -> None:
    found = drive(make(*ALLOW), hidden(61))
    # tables of 25.5 and 30.5 lack it (at 20.5 NVML had shown it but once); told at the end of the interval
    assert [one.ts for one in found] == [39.0, 49.0, 59.0]
    assert found[0].severity is Severity.CRITICAL
    assert (found[0].subject_kind, found[0].subject) == ("process", "hidden gpu=GPU-a")
    assert (found[0].score, found[0].threshold) == (3.0, 2.0)
    assert found[0].reason == ("NVML shows pid 666 on GPU-a; 3 whole process tables in a row do not: hidden from /proc")
    assert found[0].evidence == {
        "gpu": "GPU-a",
        "pid": 666,
        "exe": None,
        "used_memory_bytes": 1 << 30,
        "kind": "hidden",
        "host": "",
        "pids": [666],
        "tables": 3,
        "first_ts": 20.0,
    }


def test_a_hidden_pid_is_told_of_without_a_policy_and_alone() -> None:
    """An idle host: nothing but the miner is on the GPU, yet kernel threads prove that the table is the host's."""
    records = stream(40, pids=lambda _: (666,), shown=lambda _: ())
    assert [one.subject for one in drive(make(), records)] == ["hidden gpu=GPU-a"] * 2


def test_one_table_without_a_pid_proves_nothing() -> None:
    records = stream(60, pids=lambda _: (100, 666), shown=lambda ts: (SERVER,) if 20 < ts < 25 else (SERVER, MINER))
    assert drive(make(), records) == []


def test_two_tables_between_two_samples_are_one() -> None:
    samples: list[Records] = [gpu(ts, (100, 666)) for ts in seconds(0, 60, 20)]
    tables = [table(ts, SERVER) for ts in (41.0, 42.0, 43.0, 44.0)]
    assert drive(make(), [*samples, *tables, gpu(45.0, (100, 666)), gpu(51.0, (100,))]) == []


@pytest.mark.parametrize(
    "fields",
    [{"complete": False}, {"blind": ("processes: 5 of 9 not permitted (hidepid)",)}, {"kernel": False}],
    ids=["cut", "not permitted", "no pid 1"],
)
def test_a_table_in_part_hides_nobody(fields: dict[str, Any]) -> None:
    samples: list[Records] = [gpu(ts, (100, 666)) for ts in seconds(0, 60)]
    detector = make(*ALLOW)
    assert drive(detector, [*samples, *(table(ts + 0.5, SERVER, **fields) for ts in seconds(0, 60, 5))]) == []
    assert detector.standing().state is DetectorState.ARMED
    assert "hidden processes cannot be told" in detector.standing().why


def inside(*processes: Process, gpus: tuple[str, ...] = ("GPU-a",)) -> list[Records]:
    """A container with a pid 1 of its own; NVML speaks of the host's pids."""
    own = process(1, "/usr/bin/tini")
    samples: list[Records] = [gpu(ts, (4100 + i,), uuid) for ts in seconds(0, 60) for i, uuid in enumerate(gpus)]
    return [*samples, *(table(ts + 0.5, own, *processes, kernel=False) for ts in seconds(0, 60, 5))]


def test_in_another_pid_namespace_it_is_blind_and_says_so() -> None:
    detector = make(*ALLOW)
    assert drive(detector, inside(gpus=("GPU-a", "GPU-b"))) == []
    standing = detector.standing()
    assert standing.state is DetectorState.MISMATCH
    assert standing.why.startswith("blind: 2 pids on GPUs, none in the process table: run in the host's pid namespace")


def test_one_pid_that_resolves_proves_the_namespace_for_all_gpus_of_the_host() -> None:
    server = process(4100, "/opt/vllm/bin/python", unit="vllm.service")
    found = drive(make(*ALLOW), inside(server, gpus=("GPU-a", "GPU-b")))
    assert {one.subject for one in found} == {"hidden gpu=GPU-b"}
    assert found[0].severity is Severity.CRITICAL


@pytest.mark.parametrize(("allow", "severity"), [(ALLOW, Severity.MEDIUM), ((), Severity.HIGH)])
def test_a_pid_that_was_in_proc_before(allow: tuple[Allow, ...], severity: Severity) -> None:
    """A dead parent whose child keeps the GPU, or a rootkit: only who it was tells them apart."""
    records = stream(60, pids=lambda _: (100,), shown=lambda ts: (SERVER,) if ts < 20 else ())
    found = drive(make(*allow), records)
    assert {(one.subject, one.severity) for one in found} == {("vanished gpu=GPU-a", severity)}
    assert found[0].ts == 29.0
    assert found[0].evidence["exe"] == "/opt/vllm/bin/python"
    assert 'pid 100 ("/opt/vllm/bin/python") was in /proc' in found[0].reason


def test_a_pid_that_comes_back_to_proc_is_forgiven() -> None:
    records = stream(90, pids=lambda _: (100,), shown=lambda ts: () if 20 < ts < 35 else (SERVER,))
    assert [one.ts for one in drive(make(*ALLOW), records)] == [29.0]


def test_a_pid_used_again_is_another_process() -> None:
    again = process(100, "/tmp/xmrig", uid=1000, start_ticks=99_999)
    detector = make(*ALLOW)
    found = drive(detector, stream(40, pids=lambda _: (100,), shown=lambda ts: (SERVER if ts < 20 else again,)))
    assert [(one.ts, one.evidence["start_ticks"]) for one in found] == [(21.0, 99_999)]


def test_a_crash_loop_is_one_subject_with_a_count() -> None:
    def pid(ts: float) -> int:
        return 1000 + int(ts // 3)

    records = stream(600, pids=lambda ts: (pid(ts),), shown=lambda ts: (process(pid(ts), "/tmp/xmrig"),), tables=1.0)
    found = drive(make(*ALLOW), records)
    assert {one.subject for one in found} == {"/tmp/xmrig uid=997 gpu=GPU-a"}
    assert len(found) == 20
    assert found[-1].evidence["starts"] == 191
    assert found[-1].reason.endswith("; 191 starts so far")


def test_ever_new_names_share_one_subject_in_the_end() -> None:
    def miner(ts: float) -> Process:
        one = int(ts // 3)
        return process(1000 + one, f"/tmp/{one:04d}")

    records = stream(300, pids=lambda ts: (miner(ts).pid,), shown=lambda ts: (miner(ts),), tables=1.0)
    subjects = [one.subject for one in drive(make(*ALLOW), records)]
    assert len(set(subjects)) == 33
    assert subjects[31] == "/tmp/0031 uid=997 gpu=GPU-a"
    assert subjects[-1] == "further executables gpu=GPU-a"


def test_several_processes_of_one_program_are_one_finding() -> None:
    workers = [process(pid, "/tmp/xmrig") for pid in (700, 701, 702)]
    found = drive(make(*ALLOW), stream(10, pids=lambda _: (702, 700, 701), shown=lambda _: workers))
    assert [one.evidence["pids"] for one in found] == [[700, 701, 702]]
    assert found[0].evidence["starts"] == 3


@pytest.mark.parametrize(
    ("allow", "foreign_to_all", "unread"),
    [
        (ALLOW, True, 0.0),  # whatever its executable is, no entry has its unit
        ((Allow(exe="/opt/vllm/**"),), False, 1.0),
        ((Allow(exe="/opt/vllm/**"), Allow(uid=1000)), False, 0.0),
        ((), False, 1.0),
    ],
)
def test_an_unreadable_executable_is_judged_by_what_can_be_read(
    allow: tuple[Allow, ...],
    foreign_to_all: bool,
    unread: float,
) -> None:
    dark = process(666, None, uid=1000, unit="other.service")
    detector = make(*allow)
    found = drive(detector, stream(10, pids=lambda _: (666,), shown=lambda _: (dark,)))
    assert [one.subject for one in found] == (["unreadable uid=1000 gpu=GPU-a"] if foreign_to_all else [])
    assert detector.standing().gauges["unread_processes"] == unread
    assert ("1 GPU processes are not judged: what would decide could not be read" in detector.standing().why) == bool(
        unread
    )


def test_synthetic_records_and_the_real_host_do_not_mix() -> None:
    """The recording's process 100 is not the host's process 100."""
    played = [one for one in foreign(60, synthetic=True) if not isinstance(one, ProcessTable)]
    real = [table(ts + 0.5, SERVER, MINER) for ts in seconds(0, 60, 5)]
    assert drive(make(*ALLOW), [*played, *real]) == []
    found = drive(make(*ALLOW), [*foreign(60, synthetic=True), *real])
    assert [(one.ts, one.synthetic) for one in found] == [(21.0, True), (51.0, True)]


def test_hosts_do_not_mix() -> None:
    records = [*foreign(60, host="one"), *(table(ts + 0.5, host="two") for ts in seconds(0, 60, 5))]
    assert [(one.ts, one.evidence["host"]) for one in drive(make(*ALLOW), records)] == [(21.0, "one"), (51.0, "one")]


def test_time_set_back_starts_afresh() -> None:
    before = [one for one in foreign(60) if isinstance(one, GpuSample | ProcessTable)]
    detector = make(*ALLOW)
    records: list[Records] = sorted(before, key=lambda one: one.ts)
    back: list[Records] = [table(10.2, SERVER, MINER), gpu(10.5, (100, 666)), table(10.7), gpu(11.5, (100, 666))]
    assert [one.ts for one in drive(detector, [*records, *back], as_given=True)] == [21.0, 51.0]


def test_a_hole_in_the_records_is_no_absence() -> None:
    records: list[Records] = [gpu(0.0, (100,)), gpu(1.0, (100,)), table(1.5), gpu(2.0, (100,))]
    records += [gpu(5000.0, (100,)), table(5000.5), gpu(5001.0, (100,)), gpu(5011.0, (100,))]
    assert drive(make(), records) == []


def test_impossible_pids_are_counted_and_left_out() -> None:
    detector = make(*ALLOW)
    odd = GpuSample(ts=1.0, gpu="GPU-a", processes=tuple(GpuProcess(pid=pid) for pid in (0, -1, 2**32 - 1, 7)))
    drive(detector, [odd])
    assert detector.standing().gauges["refused"] == 3.0
    assert detector.standing().gauges["gpu_processes"] == 1.0


def test_stale_tables_make_it_blind() -> None:
    detector = make(*ALLOW)
    records: list[Records] = [gpu(ts, (100, 666)) for ts in seconds(0, 300)]
    found = drive(detector, [*records, table(1.5, SERVER, MINER)])
    assert [one.ts for one in found] == [2.0, 32.0, 62.0, 92.0]  # for as long as the table may be believed
    assert detector.standing().state is DetectorState.STALE
    assert detector.standing().why.startswith("blind: no process table of late")


def test_more_gpus_than_the_limit_saturate_it() -> None:
    detector = make(*ALLOW)
    drive(detector, [gpu(1.0, (), f"GPU-{i}") for i in range(300)])
    assert detector.standing().state is DetectorState.SATURATED
    assert detector.standing().gauges["refused"] == 44.0


def test_text_chosen_by_others_cannot_break_a_line() -> None:
    evil = process(666, "/tmp/a\nb\u202e" + "x" * 5000, uid=1000, cmdline=("y" * 9000,))
    found = drive(make(*ALLOW), stream(5, pids=lambda _: (666,), shown=lambda _: (evil,)))
    assert found[0].subject.startswith("/tmp/a\\u000ab\\u202exxx")
    assert len(found[0].subject) < 300
    assert len(found[0].evidence["cmdline"]) <= 400
    assert found[0].reason.isprintable()


def test_a_name_that_is_not_utf8_survives_a_snapshot() -> None:
    odd = process(666, b"/tmp/\xff".decode("utf-8", "surrogateescape"))
    detector = make(*ALLOW)
    drive(detector, stream(5, pids=lambda _: (666,), shown=lambda _: (odd,)))
    make(*ALLOW).restore(detector.snapshot())


def test_other_kinds_of_records_do_not_disturb() -> None:
    assert make(*ALLOW).observe(requests([1.0])) == []
    assert make(*ALLOW).observe(status(1.0)) == []
    assert make(*ALLOW).close(Interval(0.0, 10.0), []) == []


# the allow list


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("/opt/vllm/**", "/opt/vllm/bin/python", True),
        ("/opt/vllm/**", "/opt/vllm", False),
        ("/opt/vllm/**", "/opt/vllm-evil/python", False),
        ("/opt/*/python", "/opt/vllm/python", True),
        ("/opt/*/python", "/opt/vllm/bin/python", False),
        ("/opt/**/python", "/opt/python", True),
        ("/opt/**/python", "/opt/a/b/python", True),
        ("/usr/bin/python3.1?", "/usr/bin/python3.11", True),
        ("/usr/bin/python3.1?", "/usr/bin/python3x11", False),
        ("/a[bc]", "/ab", False),
        ("/a[bc]", "/a[bc]", True),
        ("/opt/**", "/opt/a\nb", True),
    ],
)
def test_globs(glob: str, path: str, matches: bool) -> None:
    assert allows([Allow(exe=glob)], process(1, path), "GPU-a") is matches


@pytest.mark.parametrize(
    ("entry", "fields", "answer"),
    [
        (Allow(container=""), {}, True),
        (Allow(container="*"), {}, False),
        (Allow(container="*"), {"container": "abc"}, True),
        (Allow(container=""), {"container": "abc"}, False),
        (Allow(unit="a.service"), {"cgroup": None}, None),
        (Allow(unit="a.service", uid=5), {"cgroup": None}, False),
        (Allow(uid=5), {"uid": None}, None),
        (Allow(gpu="GPU-b"), {}, False),
        (Allow(gpu="GPU-*"), {}, True),
        (Allow(cgroup="/system.slice/**"), {}, True),
        (Allow(uid=0), {"uid": 0}, True),
    ],
)
def test_conditions(entry: Allow, fields: dict[str, Any], answer: bool | None) -> None:
    assert allows([entry], process(7, "/x", **fields), "GPU-a") is answer


def test_an_entry_without_conditions_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="at least one condition"):
        msgspec.convert({"allow": [{}]}, Params)
    with pytest.raises(msgspec.ValidationError, match="unknown field `path`"):
        msgspec.convert({"allow": [{"path": "/x"}]}, Params)
    assert msgspec.convert({"allow": [{"exe": "/x", "uid": 5}]}, Params).allow == (Allow(exe="/x", uid=5),)


# fit


def test_fit_proposes_what_ordinary_records_show() -> None:
    sidecar = process(101, "/usr/bin/triton", uid=5, container="f" * 64, unit="docker-ffff.scope")
    upgraded = process(102, "/opt/old (deleted)")
    odd = process(103, "/opt/*")
    dark = process(104, None, uid=9)
    everyone = (SERVER, sidecar, upgraded, odd, dark)
    records = stream(30, pids=lambda _: (100, 101, 102, 103, 104), shown=lambda _: everyone)
    learned = GpuForeignProcess.fit(ordered(records), Params(), kernels)
    assert learned is not None
    assert learned.section is not None
    assert learned.section.header == {
        "allow": [
            {"exe": "/opt/vllm/bin/python", "uid": 997, "unit": "vllm.service", "container": ""},
            {"exe": "/usr/bin/triton", "uid": 5, "container": "*"},
        ]
    }
    assert learned.notes == (
        'not learned: "/opt/*": its name would be a glob',
        'not learned: "/opt/old (deleted)": its file was deleted',
        "not learned: uid 9 runs a GPU program whose executable cannot be read",
        "2 allow entries learned: review them, whatever ran while recording is now allowed",
    )
    header = json.loads(json.dumps(learned.section.header))
    detector = make(section=Section(header, {}))
    assert [one.subject for one in drive(detector, foreign(30))] == ["/tmp/xmrig uid=1000 gpu=GPU-a"]
    assert detector.standing().state is DetectorState.ARMED


def test_a_configured_list_stands_above_the_baseline() -> None:
    section = Section({"allow": [{"exe": "/tmp/xmrig"}]}, {})
    assert drive(make(Allow(exe="/opt/**"), section=section), foreign(30)) != []


@pytest.mark.parametrize("header", [{}, {"allow": [{}]}, {"allow": "/x"}])
def test_a_baseline_that_does_not_fit_is_refused(header: dict[str, Any]) -> None:
    with pytest.raises(BaselineError, match="gpu_foreign_process"):
        make(section=Section(header, {}))


@pytest.mark.parametrize(
    ("records", "need"),
    [
        ([], "no GPU sample lists processes"),
        ([gpu(1.0, None)], "no GPU sample lists processes"),
        ([gpu(1.0, (5,))], "no process tables"),
        ([gpu(1.0, (5,)), table(1.5)], "no process with a readable executable"),
        (foreign(60, synthetic=True), "no GPU sample lists processes"),
    ],
)
def test_fit_says_what_it_needs(records: list[Records], need: str) -> None:
    learned = GpuForeignProcess.fit(ordered(records), Params(), kernels)
    assert learned is not None
    assert learned.section is None
    assert learned.refused is not None
    assert learned.refused.startswith(need)


def conformance() -> Case:
    ghost = process(300, "/memfd:k (deleted)")
    records: list[Records] = [
        *foreign(120),
        *(gpu(ts + 0.1, (666, 667, 668), "GPU-b") for ts in seconds(0, 120)),
        *(gpu(ts + 0.2, (300,) if ts < 60 else (), "GPU-c") for ts in seconds(0, 120)),
        *(table(ts + 0.6, SERVER, MINER, ghost) for ts in seconds(0, 120, 5)),
    ]
    records = [one for one in records if not (isinstance(one, ProcessTable) and one.ts % 1 < 0.55)]

    def flood(n: int) -> list[Records]:
        return [one for i in range(n) for one in (gpu(i * 0.5, (666,), f"GPU-{i}"), table(i * 0.5 + 0.1, MINER))]

    return Case(GpuForeignProcess, Params(allow=ALLOW), ordered(records), Params(allow=ALLOW), flood)


def test_the_case_holds_every_kind_of_finding() -> None:
    kinds = {one.evidence["kind"] for one in drive(make(*ALLOW), conformance().records)}
    assert kinds == {"foreign", "hidden", "memfd"}


def test_restarts_at_any_point_change_nothing() -> None:
    records = conformance().records
    found = drive(make(*ALLOW), records)
    assert found
    assert drive(make(*ALLOW), records, restart=lambda: make(*ALLOW)) == found


DIGEST, OTHER = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("entry", "depth", "found"),
    [
        (Allow(sha256=DIGEST), Depth(sha256=DIGEST), False),
        (Allow(sha256=DIGEST), Depth(sha256=OTHER), True),
        (Allow(sha256=DIGEST), None, None),  # not read: no verdict, and it says so
        (Allow(parent="/opt/launcher"), None, False),
        (Allow(parent="/bin/sh"), None, True),
        (Allow(gpu_instance=3), None, False),
        (Allow(gpu_instance=4), None, True),
    ],
)
def test_digest_parent_and_mig_slice_are_conditions(entry: Allow, depth: Depth | None, found: bool | None) -> None:
    parent = process(50, "/opt/launcher", unit="vllm.service")
    server = process(100, "/opt/vllm/bin/python", unit="vllm.service", ppid=50, depth=depth)
    detector = make(entry)
    records: list[Records] = [
        GpuSample(ts=ts, gpu="GPU-a", processes=(GpuProcess(pid=100, instances=(3,)),)) for ts in seconds(0, 20)
    ]
    told = drive(detector, [*records, *(table(ts + 0.5, parent, server) for ts in seconds(0, 20, 5))])
    assert bool(told) == bool(found)
    assert detector.standing().gauges["unread_processes"] == float(found is None)
    if told:
        assert told[0].evidence["sha256"] == (None if depth is None else OTHER)


def test_the_same_program_at_the_same_path_with_another_digest_is_told_of() -> None:
    """What an attacker who may write to the path would do."""
    genuine = process(100, "/opt/vllm/bin/python", depth=Depth(sha256=DIGEST))
    swapped = process(200, "/opt/vllm/bin/python", depth=Depth(sha256=OTHER))
    records = stream(
        60,
        pids=lambda ts: (100,) if ts < 20 else (200,),
        shown=lambda ts: (genuine,) if ts < 20 else (swapped,),
    )
    found = drive(make(Allow(exe="/opt/vllm/**", sha256=DIGEST)), records)
    assert [one.evidence["pid"] for one in found] == [200, 200]
