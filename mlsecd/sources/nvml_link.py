"""The parent's end of the NVML child: its start, its messages, and how it is let go."""

from __future__ import annotations

import contextlib
import os
import platform
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from mlsecd.errors import SourceError

__all__ = ["COMMAND", "Begin", "Child", "End", "Failed", "Gpu", "Hello", "Message", "Values", "Xid", "library_missing"]

LIBRARY: Final = "libnvidia-ml.so.1"
# -P: a file in the working directory must not pass for a module of ours.
COMMAND: Final = (sys.executable, "-P", "-m", "mlsecd.sources.nvml_child")
TERM_SECONDS: Final = 5.0  # from SIGTERM to SIGKILL: nvmlShutdown may take this long
KILL_SECONDS: Final = 2.0  # from SIGKILL to giving up: a process in a driver call may survive it
MAX_LINE_BYTES: Final = 1 << 20
_READ_BYTES: Final = 1 << 16
_SLICE_SECONDS: Final = 0.25  # how soon a wait notices that another thread closed the source
_PACE_SECONDS: Final = 0.005  # answers come one GPU at a time: waking for each would cost more than reading


class _Message(msgspec.Struct, frozen=True, tag_field="type"):
    """One line of the child; unknown keys are ignored."""


class Hello(_Message, frozen=True, tag="hello"):
    """NVML is initialised."""

    count: int


class Begin(_Message, frozen=True, tag="begin"):
    """The GPUs have been counted; what hangs from here on hangs at one of them."""

    count: int


class Process(msgspec.Struct, frozen=True):
    """One entry of a GPU's process list."""

    pid: int
    type: str
    exe: str | None = None
    used_memory_bytes: int | None = None
    instances: tuple[int, ...] = ()


class Job(msgspec.Struct, frozen=True):
    """One process that accounting saw end."""

    pid: int
    start_ts: float
    seconds: float
    max_memory_bytes: int | None = None
    utilization: float | None = None


class Values(msgspec.Struct, frozen=True):
    """Readings, named and in the units of ``GpuSample``."""

    utilization: float | None = None
    memory_utilization: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    memory_reserved_bytes: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    energy_joules: float | None = None
    temperature_celsius: float | None = None
    memory_temperature_celsius: float | None = None
    fan_ratio: float | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    throttle_reasons: int | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    remapped_rows_pending: bool | None = None
    remapped_rows_failure: bool | None = None
    pcie_replays: int | None = None
    recovery_action: int | None = None
    encoder_utilization: float | None = None
    decoder_utilization: float | None = None
    remapped_rows_corrected: int | None = None
    remapped_rows_uncorrected: int | None = None
    nvlink_crc_errors: int | None = None
    nvlink_replays: int | None = None
    nvlink_recoveries: int | None = None
    nvlink_sent_bytes: int | None = None
    nvlink_received_bytes: int | None = None
    pcie_sent_bytes: int | None = None
    pcie_received_bytes: int | None = None
    graphics_active: float | None = None
    sm_active: float | None = None
    tensor_active: float | None = None
    dram_active: float | None = None


class Gpu(_Message, frozen=True, tag="gpu"):
    """One GPU of one sample; ``posture`` and ``name`` only where they are new."""

    ts: float
    index: int
    state: str  # ok, lost, reset_required, refused
    uuid: str | None = None  # None: it could not be opened in this process
    error: str | None = None
    name: str | None = None
    posture: dict[str, str] | None = None
    values: Values = Values()
    processes: list[Process] | None = None
    accounted: int | None = None
    jobs: list[Job] = []
    blind: list[str] = []


class Xid(_Message, frozen=True, tag="xid"):
    """An Xid error, told when it happens."""

    xid: int
    ts: float
    uuid: str | None = None


class End(_Message, frozen=True, tag="end"):
    """The sample is complete."""

    count: int
    xids_lost: int = 0


class Failed(_Message, frozen=True, tag="failed"):
    """The child cannot go on; ``code`` is NVML's, 0 where it is not NVML that failed."""

    code: int
    error: str


Message = Hello | Begin | Gpu | Xid | End | Failed
_DECODER: Final[msgspec.json.Decoder[Message]] = msgspec.json.Decoder(Hello | Begin | Gpu | Xid | End | Failed)


def library_missing() -> str | None:
    """Why NVIDIA's library cannot be there, or None where it may: a look at the loader's places, no loading.

    Loading it here would keep the library of one driver version in this process for good.
    """
    machine = platform.machine()
    places = [
        *os.environ.get("LD_LIBRARY_PATH", "").split(":"),
        *(f"{root}/{part}" for root in ("/lib", "/usr/lib") for part in ("", f"{machine}-linux-gnu")),
        *("/lib64", "/usr/lib64", "/usr/local/lib"),
    ]
    if any((Path(place) / LIBRARY).exists() for place in places if place):
        return None
    try:
        if f"{LIBRARY}\0".encode() in Path("/etc/ld.so.cache").read_bytes():
            return None
    except OSError:
        pass  # no cache: the places above were all
    return f"no NVIDIA driver library ({LIBRARY}) on this host"


class Child:
    """One child process: asked and read with deadlines, let go without ever waiting for it.

    Parameters
    ----------
    posture_seconds
        How often it reads the settings anew.
    command
        What to run; the environment is passed on as it is.
    """

    def __init__(self, posture_seconds: float, command: Sequence[str] = COMMAND) -> None:
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [*command, str(posture_seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
            )
        except OSError as error:
            raise SourceError(f"the NVML process does not start: {error}") from None
        if self._process.stdin is None or self._process.stdout is None:
            raise SourceError("the NVML process has no pipes")
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        self._poll = select.poll()
        self._poll.register(self._stdout, select.POLLIN)
        self._pending = bytearray()
        self._left_at: float | None = None
        self._killed_at: float | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def survived(self) -> bool:
        """SIGKILL was sent and did not end it in time: the driver holds it."""
        return self._killed_at is not None and time.monotonic() - self._killed_at > KILL_SECONDS

    def ask(self, request: dict[str, Any]) -> None:
        """Send one request. Raises :class:`SourceError` where the child does not take it."""
        try:
            self._stdin.write(msgspec.json.encode(request) + b"\n")
        except (OSError, ValueError):  # ended, its pipe full, or closed under us
            raise SourceError(self._obituary()) from None

    def messages(self, until: float) -> Iterator[Message]:
        """Messages as they come, until ``time.monotonic()`` passes ``until``.

        Raises :class:`SourceError` where the child has ended or talks nonsense.
        """
        while True:
            while (newline := self._pending.find(b"\n")) >= 0:
                line = bytes(self._pending[:newline])
                del self._pending[: newline + 1]
                yield self._decode(line)
            if self._left_at is not None:
                raise SourceError("the NVML process was asked to go")
            left = until - time.monotonic()
            if left <= 0:
                return
            if self._poll.poll(min(left, _SLICE_SECONDS) * 1000):
                time.sleep(min(_PACE_SECONDS, left))
                self._read()

    def _read(self) -> None:
        data = self._stdout.read(_READ_BYTES)
        if data == b"":
            raise SourceError(self._obituary())
        self._pending += data or b""
        if len(self._pending) > MAX_LINE_BYTES and b"\n" not in self._pending:
            raise SourceError(f"the NVML process sent a line of more than {MAX_LINE_BYTES} bytes")

    def _decode(self, line: bytes) -> Message:
        try:
            return _DECODER.decode(line)
        except msgspec.MsgspecError as error:
            raise SourceError(f"the NVML process sent what cannot be read: {error}") from None

    def _obituary(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.1)  # its pipe closes a moment before it can be reaped
        status = self._process.poll()
        if status is None:
            return "the NVML process closed its pipe"
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"the NVML process {how}"

    def leave(self) -> None:
        """Ask it to go (SIGTERM), which gives it time for nvmlShutdown."""
        if self._left_at is not None:
            return
        self._left_at = time.monotonic()
        self._process.send_signal(signal.SIGTERM)  # does nothing once it has ended

    def gone(self) -> bool:
        """Whether a child that was asked to go has gone; sends SIGKILL once its time is up. Never waits."""
        now = time.monotonic()
        if self._process.poll() is not None:
            self._stdin.close()
            self._stdout.close()
            return True
        if self._killed_at is None and self._left_at is not None and now - self._left_at > TERM_SECONDS:
            self._killed_at = now
            self._process.kill()
        return False
