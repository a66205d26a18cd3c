"""GPUs by NVML, asked in a child process so that a driver call that never returns blinds nothing else."""

from __future__ import annotations

import math
import threading
import time
from typing import Annotated, Final

import msgspec

from mlsecd.errors import SourceError
from mlsecd.meters import Meters
from mlsecd.records import GpuSample, Kind
from mlsecd.sources import base
from mlsecd.sources.nvml_link import (
    KILL_SECONDS,
    TERM_SECONDS,
    Begin,
    Child,
    End,
    Failed,
    Gpu,
    Hello,
    Message,
    Xid,
    library_missing,
)
from mlsecd.sources.nvml_roster import Roster, Suspects
from mlsecd.sources.procfs import own_pid

__all__ = ["SOURCE", "Nvml", "NvmlParams"]

MAX_XID: Final = 255  # a larger one is no Xid that NVIDIA ever listed: it must not become a label
MAX_LEAVING: Final = 3  # children that the driver holds; each keeps some 15 MiB
TOLERANCE_SECONDS: Final = 0.01  # a caller's deadline may be ours, less the way from there to here

Seconds = Annotated[float, msgspec.Meta(gt=0)]


class NvmlParams(base.Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configuration of the ``nvml`` source."""

    interval_seconds: Annotated[Seconds, msgspec.Meta(description="Seconds between samples.")] = 1.0
    deadline_seconds: Annotated[
        Seconds, msgspec.Meta(description="Seconds after which a GPU that has not answered is called hung.")
    ] = 5.0
    start_seconds: Annotated[
        Seconds,
        msgspec.Meta(
            description="Seconds that the driver may take to initialise; without persistence mode it wakes every GPU."
        ),
    ] = 30.0
    posture_seconds: Annotated[
        Seconds,
        msgspec.Meta(description="Seconds between readings of settings; also how soon a lost GPU is looked for anew."),
    ] = 60.0
    restart_seconds: Annotated[
        Seconds, msgspec.Meta(description="Seconds before a failed NVML process is started anew; doubles each time.")
    ] = 1.0
    restart_max_seconds: Annotated[
        Seconds, msgspec.Meta(description="Seconds that the doubling of restart_seconds stops at.")
    ] = 60.0
    hang_retry_seconds: Annotated[
        Seconds,
        msgspec.Meta(description="Seconds that a hung GPU is left alone; doubles each time, up to 20 times this."),
    ] = 30.0
    expected_gpus: (
        Annotated[
            int,
            msgspec.Meta(ge=0, le=128, description="GPUs that should be there; unset: the most seen since the start."),
        ]
        | None
    ) = None
    activity: Annotated[
        bool,
        msgspec.Meta(description="Whether to read SM, tensor and memory activity (GPM): two driver calls a GPU more."),
    ] = False
    processes: Annotated[bool, msgspec.Meta(description="Whether to read which processes use each GPU.")] = True


class Nvml(base.Source):
    """Every GPU once an interval: readings, settings, processes and Xid errors.

    A GPU that has fallen off the bus is ``lost``, one at which the driver does not come back is ``hung``, and
    the others go on. A hung child is asked to go, then killed; one that even that does not end is left
    behind and counted. Readings that NVML does not support are ``None``; what it refuses is in ``blind``.

    Blind spots: a process that starts and ends between two samples (accounting tells of those); PCIe traffic where the
    driver keeps no counters of it; what happens on a MIG instance, beyond memory, processes and layout.
    """

    name = "nvml"
    emits = frozenset({Kind.GPU})
    summary = "GPUs by NVIDIA's management library: load, memory, settings, processes, Xid errors."
    Params = NvmlParams

    def __init__(self, params: NvmlParams, meters: Meters) -> None:
        super().__init__(params, meters)
        self.params: NvmlParams = params
        self.interval_seconds = params.interval_seconds
        self._lock = threading.Lock()
        self._closed = False
        self._roster = Roster(own_pid())
        self._child: Child | None = None
        self._leaving: list[Child] = []
        self._suspects = Suspects(params.hang_retry_seconds)
        self._failures = 0
        self._not_before = -math.inf
        self._why = ""
        self._hangs = False
        self._count = 0
        self._most = 0
        self._forget_conversation()

    def _forget_conversation(self) -> None:
        self._greeted = False
        self._since: float | None = None  # since when an answer is awaited
        self._begun = False
        self._rows: dict[int, Gpu] = {}
        self._skipped: frozenset[int] = frozenset()
        self._started = time.monotonic()

    def supported(self) -> str | None:
        """The reason, where the host has no NVIDIA driver."""
        return library_missing()

    @property
    def _expected(self) -> int | None:
        return self._most or None if self.params.expected_gpus is None else self.params.expected_gpus

    def poll(self, deadline: float) -> base.Poll:
        """One sample of every GPU, or as much of it as came by the deadline.

        Raises :class:`SourceError` where NVML cannot be asked at all.
        """
        with self._lock:
            if self._closed:
                raise SourceError("the nvml source is closed")
            now = time.monotonic()
            self._reap()
            if self._child is None and (now < self._not_before or len(self._leaving) >= MAX_LEAVING):
                return self._idle()
            try:
                if self._child is None:
                    self._start()
                return self._converse(now, min(deadline, now + self.params.deadline_seconds))
            except SourceError as error:
                self._let_go(str(error), failed=True)
                raise

    def _start(self) -> None:
        self._forget_conversation()
        self._since = self._started
        self._child = Child(self.params.posture_seconds)
        self.meters.count("mlsecd_nvml_process_starts_total")

    def _idle(self) -> base.Poll:
        """No child now: the last reason stands, and GPUs that hung still hang as far as anybody knows."""
        if not self._hangs:
            raise SourceError(self._why or "earlier NVML processes have not ended yet")
        samples = self._roster.silent(self._roster.uuids, "hung", time.time(), self._why)
        return base.Poll(samples, seen=0, expected=self._expected, error=self._why)

    def _converse(self, now: float, until: float) -> base.Poll:
        if self._greeted and self._since is None:
            self._request(now)
        for message in self._child.messages(until) if self._child else ():
            if isinstance(message, End):
                return self._complete(message)
            self._take(message)
        return self._unanswered()

    def _request(self, now: float) -> None:
        self._since, self._begun, self._rows = now, False, {}
        self._skipped = self._suspects.left_alone(now)
        if self._child:
            wanted = {"processes": self.params.processes, "activity": self.params.activity}
            self._child.ask({"skip": sorted(self._skipped), **wanted})

    def _take(self, message: Message) -> None:
        match message:
            case Hello():
                self._greeted = True
                self._recount(message.count)
                self._request(time.monotonic())
            case Begin():
                self._begun = True
                self._recount(message.count)
            case Gpu():
                self._rows[message.index] = message
            case Xid():
                self._roster.xid(message)
                self._note_xid(message)
            case Failed():
                raise SourceError(f"NVML: {message.error}" if message.code else message.error)

    def _note_xid(self, event: Xid) -> None:
        """Count it, and say when it last came: a gauge of "the last Xid" looks current for ever."""
        if event.uuid is not None and event.xid <= MAX_XID:
            gpu, xid = event.uuid, str(event.xid)
            self.meters.count("mlsecd_gpu_xid_errors_total", gpu=gpu, xid=xid)
            self.meters.gauge("mlsecd_gpu_xid_last_timestamp_seconds", event.ts, gpu=gpu, xid=xid)

    def _recount(self, count: int) -> None:
        """With another number of GPUs an index means another GPU."""
        if count != self._count:
            self._suspects.clear()
        self._count = count
        self._most = max(self._most, count)

    def _samples(self) -> tuple[list[GpuSample], list[str]]:
        """Samples of the GPUs that answered, and what is wrong with those that could not be opened."""
        samples, errors = [], []
        for gpu in self._rows.values():
            sample = None if gpu.state == "refused" else self._roster.sample(gpu)
            if sample is None:
                errors.append(f"GPU {gpu.index}: {gpu.error or gpu.state}")
            else:
                samples.append(sample)
        return samples, errors

    def _complete(self, end: End) -> base.Poll:
        samples, errors = self._samples()
        self._recount(end.count)
        self._suspects.answered(self._rows)
        ts = time.time()
        missing = set(self._roster.uuids).difference(sample.gpu for sample in samples)
        hung = [uuid for uuid in missing if self._roster.index(uuid) in self._skipped]
        refused = {self._roster.at(index) for index in self._rows}
        samples += self._roster.silent(sorted(hung), "hung", ts, "NVML hung at this GPU")
        gone = sorted(missing.difference(hung, refused))
        samples += self._roster.silent(gone, "lost", ts, "NVML enumerates it no longer")
        errors += [f"NVML hung at GPU {index}" for index in sorted(self._skipped)]
        if not end.count:
            errors.append("NVML sees no GPU: are the device nodes (/dev/nvidia*) there, and allowed to this service?")
        self._settle(end, look_again=not end.count or any(sample.state == "lost" for sample in samples))
        return base.Poll(samples, seen=end.count, expected=self._expected, error="; ".join(errors) or None)

    def _settle(self, end: End, *, look_again: bool) -> None:
        """Close the conversation; NVML finds a GPU that came back only when it is initialised anew."""
        self._since, self._rows, self._hangs = None, {}, False
        if end.xids_lost or self._roster.dropped:
            self.meters.drop("nvml", "xid", end.xids_lost + self._roster.dropped)
            self._roster.dropped = 0
        age = time.monotonic() - self._started
        if age > self.params.restart_max_seconds:
            self._failures = 0
        if look_again and age > self.params.posture_seconds:
            self._let_go("NVML is initialised anew", failed=False)

    def _unanswered(self) -> base.Poll:
        now = time.monotonic()
        waited = now - (self._since or now)
        limit = self.params.deadline_seconds if self._greeted else self.params.start_seconds
        if waited < limit - TOLERANCE_SECONDS:
            why = f"no answer from NVML for {waited:.1f} s"
            hung = self._roster.silent(self._roster.uuids, "hung", time.time(), why) if self._hangs else []
            return base.Poll(hung, expected=self._expected, error=why)
        return self._hung(now)

    def _hung(self, now: float) -> base.Poll:
        """The child does not come back: report who answered, leave it behind, and next time leave out the culprit."""
        asked = [index for index in range(self._count) if index not in self._skipped] if self._begun else []
        culprit = next((index for index in asked if index not in self._rows), None)
        where = "in the driver" if culprit is None else f"at GPU {culprit}"
        samples, _ = self._samples()
        self.meters.count("mlsecd_nvml_hangs_total")
        self._let_go(f"NVML hangs {where}", failed=True)
        self._hangs = True
        if culprit is not None:
            self._suspects.hung(culprit, now)
            self._not_before = now  # the suspect waits: the other GPUs need not
        silent = sorted(set(self._roster.uuids).difference(sample.gpu for sample in samples))
        seen = len(samples)
        samples += self._roster.silent(silent, "hung", time.time(), self._why)
        return base.Poll(samples, seen=seen, expected=self._expected, error=self._why)

    def _let_go(self, why: str, *, failed: bool) -> None:
        self._why, self._hangs = why, False
        if self._child is not None:
            self._child.leave()
            self._leaving.append(self._child)
            self._child = None
        if failed:
            wait = self.params.restart_seconds * 2 ** min(self._failures, 30)
            self._not_before = time.monotonic() + min(wait, self.params.restart_max_seconds)
            self._failures += 1
        self._forget_conversation()

    def _reap(self) -> None:
        self._leaving = [child for child in self._leaving if not child.gone()]
        self.meters.gauge("mlsecd_nvml_processes_abandoned", sum(child.survived for child in self._leaving))

    def close(self) -> None:
        """Ask the child to go and see it off; bounded, so a child that the driver holds is left behind."""
        self._closed = True
        child = self._child
        if child is not None:
            child.leave()  # a poll in another thread ends with it
        with self._lock:
            self._let_go("the nvml source is closed", failed=False)
            until = time.monotonic() + TERM_SECONDS + KILL_SECONDS
            self._reap()
            while self._leaving and time.monotonic() < until:
                time.sleep(0.02)
                self._reap()


SOURCE = Nvml
