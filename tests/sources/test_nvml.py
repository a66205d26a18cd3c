"""GPUs through the real pynvml, the real child process, and a stand-in for the driver library."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlsecd.errors import SourceError
from mlsecd.meters import Meters
from mlsecd.records import GpuSample
from mlsecd.sources import nvml as nvml_source
from mlsecd.sources import nvml_link, procfs
from mlsecd.sources.base import Poll
from mlsecd.sources.nvml import Nvml, NvmlParams
from mlsecd.sources.nvml_link import Child
from tests.fakenvml import FakeNvml, build

MIB = 1 << 20
PATIENCE = 20.0  # seconds; the machine that tests may be busy
Start = Callable[..., Nvml]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fakenvml"))


@pytest.fixture
def fake(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    monkeypatch.setenv("FAKENVML_STATE", str(tmp_path / "state.txt"))
    monkeypatch.setenv("FAKENVML_LOG", str(tmp_path / "log.txt"))
    return FakeNvml(tmp_path / "state.txt", "b200")


@pytest.fixture(scope="session")
def left() -> Iterator[list[Child]]:
    """Children that were asked to go; seen off together, since each takes its time for an orderly end."""
    leaving: list[Child] = []
    yield leaving
    eventually(lambda: not [child for child in leaving if not child.gone()])


@pytest.fixture
def start(left: list[Child]) -> Iterator[Start]:
    made: list[Nvml] = []

    def make(**params: Any) -> Nvml:
        patient = {"deadline_seconds": 10.0, "restart_seconds": 0.05, "posture_seconds": 600.0}
        made.append(Nvml(NvmlParams(**{**patient, **params}), Meters()))
        return made[-1]

    yield make
    for source in made:
        for child in children(source):
            child.leave()
            left.append(child)


def children(source: Nvml) -> list[Child]:
    return [*source._leaving, *([source._child] if source._child else [])]


def pid_of(source: Nvml) -> int:
    assert source._child is not None
    return source._child.pid


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(what: Callable[[], Any]) -> Any:
    """Ask until the answer is truthy."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        answer = what()
        if answer:
            return answer
        time.sleep(0.02)
    raise AssertionError("it never came true")


def once(source: Nvml) -> Poll:
    return source.poll(time.monotonic() + PATIENCE)


def samples(poll: Poll) -> list[GpuSample]:
    assert all(isinstance(record, GpuSample) for record in poll.records)
    return sorted((record for record in poll.records if isinstance(record, GpuSample)), key=lambda gpu: gpu.gpu)


def poll_until(source: Nvml, holds: Callable[[Poll], Any]) -> Poll:
    """Poll until a poll is as wanted; polls that cannot deliver are not."""

    def attempt() -> Poll | None:
        try:
            poll = once(source)
        except SourceError:
            return None
        return poll if holds(poll) else None

    return eventually(attempt)


def states(poll: Poll) -> list[str]:
    return [gpu.state for gpu in samples(poll)]


def logged(fake: FakeNvml, what: str) -> list[int]:
    """Pids that the library noted this of."""
    log = fake.path.with_name("log.txt")
    lines = log.read_text().splitlines() if log.exists() else []
    return [int(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == what]


# What a sample holds.


def test_an_h100_under_load_reads_as_the_capture_says(fake: FakeNvml, start: Start) -> None:
    fake.load("h100")
    (gpu,) = samples(once(start()))
    assert (gpu.name, gpu.index, gpu.state, gpu.blind) == ("NVIDIA H100 80GB HBM3", 0, "ok", ())
    assert (gpu.utilization, gpu.memory_utilization) == (1.0, 0.11)
    assert (gpu.memory_total_bytes, gpu.memory_used_bytes) == (81559 * MIB, 19818 * MIB)
    assert gpu.memory_reserved_bytes == 479 * MIB
    assert (gpu.power_watts, gpu.power_limit_watts, gpu.energy_joules) == (631.95, 700.0, 86_400_000.0)
    assert (gpu.temperature_celsius, gpu.memory_temperature_celsius, gpu.fan_ratio) == (59.0, 54.0, None)
    assert (gpu.sm_clock_hz, gpu.memory_clock_hz, gpu.throttle_reasons) == (1.98e9, 2.619e9, 0)
    assert (gpu.ecc_corrected, gpu.ecc_uncorrected) == (0, 0)
    assert (gpu.remapped_rows_pending, gpu.remapped_rows_failure) == (False, False)
    assert (gpu.pcie_replays, gpu.recovery_action) == (9, 0)
    assert gpu.processes is not None
    assert [(row.pid, row.exe, row.used_memory_bytes, row.type) for row in gpu.processes] == [
        (11327, "/root/tools/memhog", 2566 * MIB, "compute"),
        (11328, "/root/tools/memhog", 1542 * MIB, "compute"),
        (11345, "./gpu_burn", 15690 * MIB, "compute"),
    ]
    assert abs(gpu.ts - time.time()) < PATIENCE


def test_posture_is_told_in_words(fake: FakeNvml, start: Start) -> None:
    fake.load("h100")
    (gpu,) = samples(once(start()))
    assert gpu.posture == {
        "driver_version": "590.48.01",
        "cuda_driver_version": "13.1",
        "confidential_compute": "disabled",
        "confidential_compute_environment": "unavailable",
        "confidential_compute_devtools": "disabled",
        "serial": "1000000000001",
        "vbios_version": "96.00.A5.00.01",
        "inforom_version": "G520.0200.00.05",
        "gsp_firmware_version": "590.48.01",
        "pci_bus_id": "00000000:00:09.0",
        "ecc_mode": "enabled",
        "ecc_mode_pending": "enabled",
        "mig_mode": "disabled",
        "mig_mode_pending": "disabled",
        "compute_mode": "default",
        "persistence_mode": "enabled",
        "accounting_mode": "disabled",
        "power_limit_watts": "700",
    }


def test_mig_mode_hides_utilization_and_shows_the_layout(fake: FakeNvml, start: Start) -> None:
    fake.load("h100_mig")
    (gpu,) = samples(once(start()))
    assert (gpu.utilization, gpu.memory_utilization, gpu.remapped_rows_pending) == (None, None, None)
    assert gpu.posture["mig_mode"] == "enabled"
    profiles = [device.partition(" ")[0] for device in gpu.posture["mig_devices"].split(", ")]
    assert profiles == ["3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb"]
    assert gpu.processes is not None
    assert [row.pid for row in gpu.processes] == [21180, 21181, 21198]


def test_a_consumer_board_has_no_ecc_and_its_desktop_is_told_once(fake: FakeNvml, start: Start) -> None:
    fake.load("rtx4080super")
    (gpu,) = samples(once(start()))
    assert (gpu.ecc_corrected, gpu.ecc_uncorrected, gpu.memory_temperature_celsius) == (None, None, None)
    assert (gpu.fan_ratio, gpu.utilization, gpu.blind) == (0.0, 0.07, ())
    assert not {"serial", "ecc_mode", "mig_mode"} & gpu.posture.keys()
    assert gpu.processes is not None
    kinds = {row.pid: (row.type, row.used_memory_bytes) for row in gpu.processes}
    assert len(gpu.processes) == len(kinds) == 7
    assert kinds[2165] == ("compute", 25 * MIB)  # in the compute list and in the graphics list
    assert kinds[2620] == ("graphics", 4 * MIB)


def test_eight_gpus_are_eight_samples(fake: FakeNvml, start: Start) -> None:
    poll = once(start())
    assert [gpu.gpu for gpu in samples(poll)] == fake.uuids
    assert [gpu.index for gpu in samples(poll)] == list(range(8))
    assert [gpu.power_watts for gpu in samples(poll)][:2] == [195.68, 206.0]
    assert (poll.seen, poll.expected, poll.error) == (8, 8, None)


def test_an_idle_a100(fake: FakeNvml, start: Start) -> None:
    fake.load("a100")
    (gpu,) = samples(once(start()))
    assert (gpu.name, gpu.power_watts, gpu.processes) == ("NVIDIA A100-SXM4-40GB", 49.68, ())
    assert "confidential_compute" not in gpu.posture


def test_memory_that_nvml_does_not_tell_is_none_not_zero(fake: FakeNvml, start: Start) -> None:
    fake.processes(0, [(41, None, "compute", "/opt/a"), (42, 7, "mps", None), (42, 5, "compute", None)])
    gpu = samples(once(start()))[0]
    assert gpu.processes is not None
    rows = {row.pid: row for row in gpu.processes}
    assert (rows[41].used_memory_bytes, rows[41].exe) == (None, "/opt/a")
    assert (rows[42].used_memory_bytes, rows[42].exe, rows[42].type) == (7, None, "mps")


@pytest.mark.parametrize("as_the_host_numbers", [True, False])
def test_its_own_entry_is_marked(
    fake: FakeNvml, start: Start, monkeypatch: pytest.MonkeyPatch, as_the_host_numbers: bool
) -> None:
    """Where pids are the host's; in a container the same number is somebody else."""
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    monkeypatch.setattr(procfs, "_HOST_PIDS", namespace if as_the_host_numbers else namespace + 1)
    fake.processes(0, [(41, 1, "compute", "/opt/a"), (os.getpid(), 1, "compute", None)])
    gpu = samples(once(start()))[0]
    assert gpu.processes is not None
    assert {row.pid: row.own for row in gpu.processes} == {41: False, os.getpid(): as_the_host_numbers}
    assert [row.pid for row in gpu.tenants or ()] == (
        [41] if as_the_host_numbers else [row.pid for row in gpu.processes]
    )


def test_a_list_with_impossible_pids_is_not_believed(fake: FakeNvml, start: Start) -> None:
    fake.processes(0, [(41, 1, "compute", "/opt/a"), (4_294_967_295, 1, "compute", "/opt/b")])
    gpu = samples(once(start()))[0]
    assert gpu.processes is None
    assert any(entry.startswith("processes: pid 4294967295") for entry in gpu.blind)


def test_processes_can_be_left_unread(fake: FakeNvml, start: Start) -> None:
    fake.load("h100")
    assert samples(once(start(processes=False)))[0].processes is None


def test_settings_are_read_anew(fake: FakeNvml, start: Start) -> None:
    source = start(posture_seconds=0.1)
    assert samples(once(source))[3].posture["ecc_mode_pending"] == "enabled"
    fake.set(3, ecc_mode="1 0")
    poll = poll_until(source, lambda poll: samples(poll)[3].posture["ecc_mode_pending"] == "disabled")
    assert samples(poll)[2].posture["ecc_mode_pending"] == "enabled"
    assert samples(poll)[3].posture["vbios_version"] == "97.00.FA.00.09"


# What NVML refuses.


def test_a_lost_gpu_leaves_the_others_alone_and_may_come_back(fake: FakeNvml, start: Start) -> None:
    source = start()
    once(source)
    fake.lose(2)
    poll = poll_until(source, lambda poll: "lost" in states(poll))
    assert states(poll) == ["ok", "ok", "lost", "ok", "ok", "ok", "ok", "ok"]
    lost = samples(poll)[2]
    assert (lost.gpu, lost.index, lost.name, lost.power_watts) == (fake.uuids[2], 2, "NVIDIA B200", None)
    assert lost.posture["serial"] == "1650000000003"
    fake.find(2)
    poll_until(source, lambda poll: states(poll) == ["ok"] * 8)


def test_a_gpu_lost_before_the_child_started_keeps_its_uuid(fake: FakeNvml, start: Start) -> None:
    source = start()
    once(source)
    fake.lose(5)
    os.kill(pid_of(source), signal.SIGKILL)
    poll = poll_until(source, lambda poll: "lost" in states(poll))
    assert samples(poll)[5].gpu == fake.uuids[5]


def test_a_gpu_never_seen_but_lost_is_an_error(fake: FakeNvml, start: Start) -> None:
    fake.lose(0)
    poll = once(start())
    assert (len(poll.records), poll.seen, poll.error) == (7, 8, "GPU 0: lost")


def test_a_lost_gpu_is_looked_for_by_a_fresh_process(fake: FakeNvml, start: Start) -> None:
    source = start(posture_seconds=0.1)
    once(source)
    first = pid_of(source)
    fake.lose(1)
    poll_until(source, lambda poll: "lost" in states(poll) and set(logged(fake, "init")) != {first})
    eventually(lambda: first in logged(fake, "shutdown"))


@pytest.mark.parametrize("change", [{"state": "reset_required"}, {"recovery_action": 1}])
def test_a_gpu_that_needs_a_reset(fake: FakeNvml, start: Start, change: dict[str, object]) -> None:
    fake.set(4, **change)
    gpu = samples(once(start()))[4]
    assert (gpu.state, gpu.name) == ("reset_required", "NVIDIA B200")
    assert gpu.recovery_action == change.get("recovery_action", 0)


def test_draining_is_no_reset(fake: FakeNvml, start: Start) -> None:
    fake.set(4, recovery_action=3)
    gpu = samples(once(start()))[4]
    assert (gpu.state, gpu.recovery_action) == ("ok", 3)


def test_not_supported_is_none_and_asked_again_with_the_settings(fake: FakeNvml, start: Start) -> None:
    source = start(posture_seconds=1.0)
    fake.fail("nvmlDeviceGetPowerUsage", "NOT_SUPPORTED", gpu=1)
    gpus = samples(once(source))
    assert (gpus[0].power_watts, gpus[1].power_watts, gpus[1].blind) == (195.68, None, ())
    fake.mend()
    assert samples(once(source))[1].power_watts is None
    poll_until(source, lambda poll: samples(poll)[1].power_watts == 206.0)


@pytest.mark.parametrize(("code", "words"), [("NO_PERMISSION", "Insufficient Permissions (4)"), (1234, "(1234)")])
def test_a_refusal_is_a_blind_spot_with_its_reason(fake: FakeNvml, start: Start, code: str | int, words: str) -> None:
    fake.fail("nvmlDeviceGetComputeRunningProcesses_v3", code)
    fake.fail("nvmlDeviceGetAccountingMode", code, gpu=0)
    gpus = samples(once(start()))
    assert gpus[0].processes is None
    assert [entry.partition(":")[0] for entry in gpus[0].blind] == ["processes", "accounting_mode"]
    assert all(entry.endswith(words) for entry in gpus[0].blind)
    assert len(gpus[1].blind) == 1
    assert gpus[0].power_watts == 195.68


def test_an_older_driver_is_asked_by_older_names(fake: FakeNvml, start: Start) -> None:
    fake.load("h100")
    for call in ("GetMemoryInfo_v2", "GetCurrentClocksEventReasons", "GetTemperatureV", "GetFieldValues"):
        fake.fail(f"nvmlDevice{call}", "FUNCTION_NOT_FOUND")
    fake.fail("nvmlDeviceGetComputeRunningProcesses_v3", "FUNCTION_NOT_FOUND")
    fake.set(0, throttle=4)
    (gpu,) = samples(once(start()))
    assert (gpu.memory_used_bytes, gpu.memory_reserved_bytes) == ((19818 + 479) * MIB, None)
    assert (gpu.throttle_reasons, gpu.temperature_celsius, gpu.recovery_action, gpu.blind) == (4, 59.0, None, ())
    assert gpu.processes is not None
    assert len(gpu.processes) == 3


def test_a_list_that_grew_between_two_calls_is_asked_for_again(fake: FakeNvml, start: Start) -> None:
    fake.load("h100")
    fake.fail("nvmlDeviceGetComputeRunningProcesses_v3", "INSUFFICIENT_SIZE", times=1)
    (gpu,) = samples(once(start()))
    assert gpu.processes is not None
    assert (len(gpu.processes), gpu.blind) == (3, ())


def test_a_gpu_that_may_not_be_opened_is_named_in_the_error(fake: FakeNvml, start: Start) -> None:
    fake.fail("nvmlDeviceGetHandleByIndex_v2", "NO_PERMISSION", gpu=6)
    poll = once(start())
    assert (len(poll.records), poll.seen) == (7, 8)
    assert poll.error == "GPU 6: Insufficient Permissions (4)"


def test_utilization_beyond_everything_says_nothing(fake: FakeNvml, start: Start) -> None:
    fake.set(0, utilization="4294967295 50")
    gpu = samples(once(start()))[0]
    assert (gpu.utilization, gpu.memory_utilization) == (None, 0.5)


# Xid errors.


def registered(fake: FakeNvml, source: Nvml) -> bool:
    return logged(fake, "register").count(pid_of(source)) >= len(fake.gpus)


def test_an_xid_is_told_once_by_its_gpu(fake: FakeNvml, start: Start) -> None:
    source = start()
    once(source)
    eventually(lambda: registered(fake, source))
    fake.xid(3, 79)
    poll = poll_until(source, lambda poll: any(gpu.xid for gpu in samples(poll)))
    assert [[event.xid for event in gpu.xid] for gpu in samples(poll)] == [[], [], [], [79], [], [], [], []]
    assert abs(samples(poll)[3].xid[0].ts - time.time()) < PATIENCE
    fake.xid(3, 48)
    poll = poll_until(source, lambda poll: any(gpu.xid for gpu in samples(poll)))
    assert [event.xid for event in samples(poll)[3].xid] == [48]


def test_a_storm_of_xids_is_counted_not_kept(fake: FakeNvml, start: Start) -> None:
    source = start()
    once(source)
    eventually(lambda: registered(fake, source))
    fake.gpus[0].lines += [f"event {number} 8 13" for number in range(1, 64)]
    fake.write()
    told = 0

    def all_accounted_for() -> bool:
        nonlocal told
        told += len(samples(once(source))[0].xid)
        return told + source.meters.value("mlsecd_dropped_total", where="nvml", reason="xid") == 63

    eventually(all_accounted_for)
    assert told < 63


def test_a_gpu_that_reports_no_xids_is_blind_to_them(fake: FakeNvml, start: Start) -> None:
    fake.set(0, events=1)
    fake.set(1, events="NOT_SUPPORTED")
    source = start()
    poll = poll_until(source, lambda poll: all(gpu.blind for gpu in samples(poll)[:2]))
    assert [gpu.blind[0].partition(":")[0] for gpu in samples(poll)[:2]] == ["xid", "xid"]
    assert samples(poll)[2].blind == ()


# A driver that hangs.


def test_a_hang_at_one_gpu_does_not_hide_the_others(
    fake: FakeNvml, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml_link, "TERM_SECONDS", 0.2)
    source = start(deadline_seconds=1.0, hang_retry_seconds=1.0)
    once(source)
    eventually(lambda: registered(fake, source))
    stuck = pid_of(source)
    fake.hang("nvmlDeviceGetPowerUsage", 600.0, gpu=3)
    began = time.monotonic()
    poll = poll_until(source, lambda poll: "hung" in states(poll))
    assert time.monotonic() - began < 5.0
    assert states(poll) == ["ok"] * 3 + ["hung"] * 5  # those after it were not reached
    assert (poll.seen, poll.expected, poll.error) == (3, 8, "NVML hangs at GPU 3")
    poll = poll_until(source, lambda poll: states(poll).count("ok") == 7)
    hung = samples(poll)[3]
    assert (hung.state, hung.index, hung.name, hung.power_watts) == ("hung", 3, "NVIDIA B200", None)
    assert poll.error == "NVML hung at GPU 3"
    eventually(lambda: (source._reap(), not alive(stuck))[1])  # SIGTERM was no use: SIGKILL came
    fake.mend()
    poll = poll_until(source, lambda poll: states(poll) == ["ok"] * 8)
    assert poll.error is None
    assert source.meters.value("mlsecd_nvml_hangs_total") >= 1


def test_an_xid_comes_through_while_a_call_hangs(fake: FakeNvml, start: Start) -> None:
    source = start(deadline_seconds=1.0)
    once(source)
    eventually(lambda: registered(fake, source))
    fake.hang("nvmlDeviceGetPowerUsage", 600.0, gpu=0)
    fake.xid(0, 119)
    poll = poll_until(source, lambda poll: "hung" in states(poll))
    assert (samples(poll)[0].state, [event.xid for event in samples(poll)[0].xid]) == ("hung", [119])
    fake.mend()


def test_a_driver_that_hangs_altogether_leaves_every_gpu_hung(fake: FakeNvml, start: Start) -> None:
    source = start(deadline_seconds=0.5, start_seconds=0.5)
    once(source)
    fake.hang("*", 600.0)
    poll = poll_until(source, lambda poll: states(poll) == ["hung"] * 8)
    assert poll.seen == 0
    assert "hang" in str(poll.error)
    fake.mend()
    poll_until(source, lambda poll: states(poll) == ["ok"] * 8)


def test_an_initialisation_that_hangs_is_tried_again_by_another_process(fake: FakeNvml, start: Start) -> None:
    fake.hang("nvmlInitWithFlags", 600.0)
    source = start(deadline_seconds=0.3, start_seconds=0.3)
    poll = once(source)
    assert (poll.records, poll.error) == ([], "NVML hangs in the driver")
    fake.mend()
    poll_until(source, lambda poll: states(poll) == ["ok"] * 8)


def test_a_slow_driver_is_waited_for(fake: FakeNvml, start: Start) -> None:
    source = start()
    once(source)
    fake.hang("nvmlDeviceGetPowerUsage", 0.3, gpu=0)
    time.sleep(0.02)  # the library looks at its file every 5 ms
    poll = source.poll(time.monotonic() + 0.1)
    assert (poll.records, poll.seen) == ([], None)
    assert str(poll.error).startswith("no answer from NVML for 0.1")
    poll_until(source, lambda poll: states(poll) == ["ok"] * 8)
    assert source.meters.value("mlsecd_nvml_process_starts_total") == 1


class Stuck:
    """A process in a driver call that no signal ends; none can be made at will."""

    survived = True

    def gone(self) -> bool:
        return False

    def leave(self) -> None:
        pass


def test_processes_that_the_driver_holds_are_counted_and_bounded(fake: FakeNvml, start: Start) -> None:
    source = start()
    source._leaving = [Stuck()] * nvml_source.MAX_LEAVING  # type: ignore[list-item]
    with pytest.raises(SourceError):
        once(source)
    assert source.meters.value("mlsecd_nvml_processes_abandoned") == nvml_source.MAX_LEAVING
    assert logged(fake, "init") == []
    source._leaving = []
    assert once(source).seen == 8


# A driver that comes, goes, or is another one.


def test_a_library_of_another_version_needs_a_fresh_process(fake: FakeNvml, start: Start) -> None:
    fake.init("LIB_RM_VERSION_MISMATCH")
    source = start()
    with pytest.raises(SourceError, match=r"version mismatch.*\(18\)"):
        once(source)
    fake.init("OK")
    poll_until(source, lambda poll: states(poll) == ["ok"] * 8)
    assert set(logged(fake, "init")).isdisjoint(logged(fake, "init failed"))


@pytest.mark.parametrize(("answer", "words"), [("DRIVER_NOT_LOADED", "Driver Not Loaded"), (999, "Unknown Error")])
def test_a_driver_that_is_not_there_yet(fake: FakeNvml, start: Start, answer: str | int, words: str) -> None:
    fake.init(f"error {answer}" if isinstance(answer, int) else answer)
    source = start()
    with pytest.raises(SourceError, match=words):
        once(source)
    fake.init("OK")
    poll_until(source, lambda poll: poll.seen == 8)


def test_a_driver_that_is_unloaded_while_we_look(fake: FakeNvml, start: Start) -> None:
    source = start()
    once(source)
    fake.fail("nvmlDeviceGetUtilizationRates", "UNINITIALIZED", gpu=4)
    with pytest.raises(SourceError, match=r"Uninitialized \(1\)"):
        eventually(lambda: once(source).error)
    fake.mend()
    poll_until(source, lambda poll: states(poll) == ["ok"] * 8)


def test_failed_starts_come_at_growing_distances(fake: FakeNvml, start: Start) -> None:
    fake.init("DRIVER_NOT_LOADED")
    source = start(restart_seconds=0.2)
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        with pytest.raises(SourceError):
            once(source)
        time.sleep(0.01)
    assert 2 <= len(logged(fake, "init failed")) <= 4  # after 0, 0.2, 0.6 and 1.4 seconds


def test_no_gpu_is_an_error_not_an_idle_host(fake: FakeNvml, start: Start) -> None:
    fake.gpus = []
    fake.write()
    source = start(expected_gpus=8)
    poll = once(source)
    assert (poll.records, poll.seen, poll.expected) == ([], 0, 8)
    assert str(poll.error).startswith("NVML sees no GPU")
    fake.load("b200")
    poll_until(source, lambda poll: poll.seen == 8)


def test_a_gpu_that_is_enumerated_no_longer_is_lost(fake: FakeNvml, start: Start) -> None:
    source = start()
    once(source)
    uuids = fake.uuids
    fake.remove(3)
    poll = poll_until(source, lambda poll: poll.seen == 7)
    assert poll.expected == 8
    assert {gpu.gpu: (gpu.state, gpu.index) for gpu in samples(poll)} == {
        uuid: ("lost", None) if at == 3 else ("ok", at - (at > 3)) for at, uuid in enumerate(uuids)
    }
    assert samples(poll)[3].blind == ("gpu: NVML enumerates it no longer",)


def test_a_state_file_with_a_mistake_changes_nothing(fake: FakeNvml, start: Start) -> None:
    source = start()
    once(source)
    for damage in ("", "gpu\npower lots\n", "nonsense 1\n", "gpu\nprocess compute\n", "x" * 600, "gpu\n" * 17):
        fake.path.write_text(damage)
        time.sleep(0.01)
        assert once(source).seen == 8


# The process itself.


def test_no_library_is_a_reason_and_no_crash(fake: FakeNvml, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    source = start()
    assert source.supported() is None
    monkeypatch.delenv("LD_LIBRARY_PATH")
    if source.supported() is None:
        pytest.skip("this host has a driver library of its own")
    assert source.supported() == "no NVIDIA driver library (libnvidia-ml.so.1) on this host"
    with pytest.raises(SourceError, match=r"NVML Shared Library Not Found \(12\)"):
        once(source)


def test_a_child_that_is_killed_is_replaced(fake: FakeNvml, start: Start) -> None:
    source = start()
    once(source)
    first = pid_of(source)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(SourceError, match="was ended by signal 9"):
        once(source)
    assert states(poll_until(source, lambda _: True)) == ["ok"] * 8
    assert pid_of(source) != first


def test_closing_shuts_nvml_down_and_leaves_nothing(fake: FakeNvml, start: Start) -> None:
    source = start()
    once(source)
    pid = pid_of(source)
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    source.close()
    source.close()
    assert not alive(pid)
    assert logged(fake, "shutdown") == [pid]
    assert len(os.listdir("/proc/self/fd")) < descriptors  # noqa: PTH208
    with pytest.raises(SourceError, match="closed"):
        once(source)


def test_closing_ends_a_poll_that_waits(fake: FakeNvml, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml_link, "TERM_SECONDS", 0.2)
    source = start()
    once(source)
    pid = pid_of(source)
    fake.hang("nvmlDeviceGetPowerUsage", 600.0)
    failures: list[SourceError] = []

    def wait() -> None:
        try:
            eventually(lambda: once(source).error)
        except SourceError as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    began = time.monotonic()
    source.close()
    assert time.monotonic() - began < 5.0
    thread.join(PATIENCE)
    assert len(failures) == 1
    assert not alive(pid)


PARENT = """
import time
from mlsecd.meters import Meters
from mlsecd.sources.nvml import Nvml, NvmlParams

source = Nvml(NvmlParams(), Meters())
source.poll(time.monotonic() + 20)
print(source._child.pid, flush=True)
while True:
    source.poll(time.monotonic() + 20)
    time.sleep(0.05)
"""


@pytest.mark.parametrize("hangs", [False, True])
def test_the_child_ends_with_its_parent(fake: FakeNvml, hangs: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(PARENT)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        if hangs:
            fake.hang("nvmlDeviceGetPowerUsage", 600.0)
            time.sleep(0.2)  # long enough for the next sample to run into it
        parent.kill()
    try:
        eventually(lambda: not alive(pid))
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    assert hangs or logged(fake, "shutdown") == [pid]


def test_the_child_stays_small() -> None:
    # less what site-packages' own .pth files load into every interpreter: numba-cuda's does
    code = (
        "import sys; before = {*sys.modules}; import mlsecd.sources.nvml_child, pynvml; print(*{*sys.modules} - before)"
    )
    # coverage would load modules of its own
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    loaded = done.stdout.split()
    assert "pynvml" in loaded
    assert not {"numpy", "numba", "msgspec", "dataclasses", "asyncio", "pathlib"} & set(loaded)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('hello')", "cannot be read"),
        ('print(\'{"type":"gpu"}\')', "cannot be read"),
        ("print('x' * (1 << 21)); input()", "more than 1048576 bytes"),
        ("raise SystemExit(3)", "ended with status 3"),
        ("import os; os.close(1); input()", "closed its pipe"),
    ],
)
def test_a_child_that_talks_nonsense_is_an_error(code: str, words: str) -> None:
    child = Child(60.0, [sys.executable, "-c", code])
    try:
        with pytest.raises(SourceError, match=words):
            list(child.messages(time.monotonic() + PATIENCE))
    finally:
        child.leave()
        eventually(child.gone)


def test_a_child_that_cannot_start_is_an_error() -> None:
    with pytest.raises(SourceError, match="does not start"):
        Child(60.0, ["/nonexistent"])


def test_accounting_brings_each_ended_job_once(fake: FakeNvml, start: Start) -> None:
    fake.set(0, accounting_mode=1)
    fake.jobs(0, [(4242, 1700000000.5, 0.8, 1 << 30, 97, False), (4243, 1700000001.0, 0.0, 1 << 30, 50, True)])
    source = start()
    samples = [one for _ in range(25) for one in source.poll(time.monotonic() + PATIENCE).records]
    mine = [one for one in samples if one.gpu == fake.uuids[0]]
    (job,) = [job for one in mine for job in one.jobs]
    assert (job.pid, job.start_ts, job.seconds, job.utilization) == (4242, 1700000000.5, 0.8, 0.97)
    assert {one.accounted for one in mine} == {None, 2}, "every tenth sample looks"
    assert all(one.accounted is None for one in samples if one.gpu == fake.uuids[1]), "off is not 0"


def test_nvlink_errors_media_engines_and_mig_instances(fake: FakeNvml, start: Start) -> None:
    fake.load("h100_mig")
    fake.set(0, encoder=7, decoder=12, remapped="3 1 0 0")
    counted = ((138, 7), (139, 5_000_000_000), (197, 11), (198, 12))
    for number, value in ((38, 5_000_000_000), (45, 2), (52, 3), (59, 4), *counted):
        fake.field(0, number, value)
    (sample,) = start().poll(time.monotonic() + PATIENCE).records
    assert isinstance(sample, GpuSample)
    assert (sample.encoder_utilization, sample.decoder_utilization) == (0.07, 0.12)
    assert (sample.remapped_rows_corrected, sample.remapped_rows_uncorrected) == (3, 1)
    assert (sample.nvlink_crc_errors, sample.nvlink_replays, sample.nvlink_recoveries) == (5_000_000_002, 3, 4)
    assert (sample.nvlink_sent_bytes, sample.nvlink_received_bytes) == (7 * 1024, 5_000_000_000 * 1024)
    assert (sample.pcie_sent_bytes, sample.pcie_received_bytes) == (11, 12)
    assert {one.instances for one in sample.processes or ()} == {(2,)}


def test_activity_is_read_where_it_is_wanted_and_the_gpu_has_it(fake: FakeNvml, start: Start) -> None:
    fake.set(0, gpm="80 62 41 55")
    source = start(activity=True)
    samples = [one for _ in range(3) for one in source.poll(time.monotonic() + PATIENCE).records]
    mine = [one for one in samples if isinstance(one, GpuSample) and one.gpu == fake.uuids[0]]
    assert mine[0].sm_active is None, "the first reading has nothing before it"
    assert not any(entry.startswith("activity") for one in mine for entry in one.blind)
    last = mine[-1]
    assert (last.graphics_active, last.sm_active, last.tensor_active, last.dram_active) == (0.8, 0.62, 0.41, 0.55)
    others = [one for one in samples if isinstance(one, GpuSample) and one.gpu != fake.uuids[0]]
    assert others
    assert all(one.sm_active is None and one.state == "ok" for one in others), "no GPM is no fault"
    fake.fail("nvmlGpmSampleGet", "NO_PERMISSION", gpu=0)
    (refused, *_) = source.poll(time.monotonic() + PATIENCE).records
    assert isinstance(refused, GpuSample)
    assert refused.sm_active is None
    assert any(entry.startswith("activity:") for entry in refused.blind)


def test_activity_is_not_read_by_default(fake: FakeNvml, start: Start) -> None:
    fake.set(0, gpm="80 62 41 55")
    source = start()
    for _ in range(2):
        (sample, *_) = source.poll(time.monotonic() + PATIENCE).records
    assert isinstance(sample, GpuSample)
    assert sample.sm_active is None
