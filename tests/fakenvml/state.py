"""Drives the stand-in: loads a profile, changes what the GPUs say, writes the state file in one step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PROFILES", "FakeNvml"]

_HERE = Path(__file__).resolve().parent / "profiles"
PROFILES = tuple(sorted(path.stem for path in _HERE.glob("*.txt")))
MAX_EVENTS = 64  # a GPU, in the library too
_REPEATED = frozenset({"process", "event", "call", "mig", "job", "field"})  # keys that may stand more than once


@dataclass
class _Section:
    """The host, or one GPU: values by key, and the lines of the repeated keys."""

    values: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def text(self) -> str:
        return "".join(f"{line}\n" for line in [*(f"{key} {value}" for key, value in self.values.items()), *self.lines])

    def drop(self, start: str) -> None:
        self.lines = [line for line in self.lines if not line.startswith(start)]


def _parse(text: str) -> tuple[_Section, list[_Section]]:
    host = section = _Section()
    gpus = []
    for line in map(str.strip, text.splitlines()):
        key, _, value = line.partition(" ")
        if not line or line.startswith("#"):
            continue
        if line == "gpu":
            section = _Section()
            gpus.append(section)
        elif key in _REPEATED:
            section.lines.append(line)
        else:
            section.values[key] = value
    return host, gpus


class FakeNvml:
    """The state of a stand-in, kept in a file that running processes read again when it changes.

    Every method that changes something writes the file at once. A GPU is named by its place in the file,
    which is its NVML index.

    Parameters
    ----------
    path
        The state file; point ``FAKENVML_STATE`` at it.
    profile
        One of :data:`PROFILES`.
    """

    def __init__(self, path: Path, profile: str = "b200") -> None:
        self.path = path
        self._events = 0
        self.load(profile)

    def load(self, profile: str) -> None:
        """Start over from a profile."""
        self.host, self.gpus = _parse((_HERE / f"{profile}.txt").read_text())
        self.write()

    def write(self) -> None:
        """Replace the file: a reader sees the old state or the new one, never half of each."""
        text = self.host.text() + "".join(f"\ngpu\n{gpu.text()}" for gpu in self.gpus)
        draft = self.path.with_suffix(".draft")
        draft.write_text(text)
        os.replace(draft, self.path)  # noqa: PTH105 - the atomic one

    @property
    def uuids(self) -> list[str]:
        """The GPUs' UUIDs, by index."""
        return [gpu.values["uuid"] for gpu in self.gpus]

    def _section(self, gpu: int | None) -> _Section:
        return self.host if gpu is None else self.gpus[gpu]

    def set(self, gpu: int | None = None, **values: object) -> None:
        """Set keys of a GPU, or of the host; a value is what the file takes: numbers, text, a code's name."""
        self._section(gpu).values.update({key: str(value) for key, value in values.items()})
        self.write()

    def init(self, answer: str | int) -> None:
        """What ``nvmlInit`` answers from now on: ``"OK"``, a code's name, or its number."""
        self.set(init=answer)

    def lose(self, gpu: int) -> None:
        """The GPU falls off the bus: every call about it answers GPU_IS_LOST."""
        self.set(gpu, state="lost")

    def require_reset(self, gpu: int) -> None:
        """Readings answer RESET_REQUIRED; identity is still told."""
        self.set(gpu, state="reset_required")

    def find(self, gpu: int) -> None:
        """The GPU is well again."""
        self.set(gpu, state="ok")

    def remove(self, gpu: int) -> None:
        """The GPU is enumerated no longer; those after it move up."""
        del self.gpus[gpu]
        self.write()

    def fail(self, call: str, code: str | int, *, gpu: int | None = None, times: int | None = None) -> None:
        """``call`` (an exported name, or ``*``) answers ``code``: always, or the next ``times`` times."""
        answer = f"error {code}" if isinstance(code, int) else code
        self._section(gpu).lines.append(f"call {call} {answer}" + (f" times {times}" if times else ""))
        self.write()

    def hang(self, call: str, seconds: float, *, gpu: int | None = None) -> None:
        """``call`` takes this long, or until :meth:`mend` takes it back; no signal but SIGKILL ends it."""
        self._section(gpu).lines.append(f"call {call} sleep {seconds}")
        self.write()

    def mend(self, call: str = "") -> None:
        """Take back what :meth:`fail` and :meth:`hang` did, to this call or to all, everywhere."""
        for section in (self.host, *self.gpus):
            section.drop(f"call {call} " if call else "call ")
        self.write()

    def event(self, gpu: int, kind: int, data: int) -> None:
        """An event that every event set made before now delivers once."""
        self._events += 1
        lines = self.gpus[gpu].lines
        lines.append(f"event {self._events} {kind} {data}")
        events = [line for line in lines if line.startswith("event ")]
        if len(events) > MAX_EVENTS:
            lines.remove(events[0])
        self.write()

    def xid(self, gpu: int, code: int) -> None:
        """The driver reports an Xid error."""
        self.event(gpu, 8, code)

    def jobs(self, gpu: int, rows: Sequence[tuple[int, float, float, int, int, bool]]) -> None:
        """What accounting remembers: ``(pid, start in s since 1970, seconds, bytes, utilization in %, running)``."""
        self.gpus[gpu].drop("job ")
        self.gpus[gpu].lines += [
            f"job {pid} {round(start * 1e6)} {round(seconds * 1e3)} {memory} {utilization} {int(running)}"
            for pid, start, seconds, memory, utilization, running in rows
        ]
        self.write()

    def field(self, gpu: int, number: int, value: int) -> None:
        """What nvmlDeviceGetFieldValues answers for one field."""
        self.gpus[gpu].drop(f"field {number} ")
        self.gpus[gpu].lines.append(f"field {number} {value}")
        self.write()

    def processes(self, gpu: int, rows: Sequence[tuple[int, int | None, str, str | None]]) -> None:
        """Replace a GPU's processes by ``(pid, bytes or None, type, name or None)``."""
        self.gpus[gpu].drop("process ")
        self.gpus[gpu].lines += [
            f"process {kind} {pid} {'-' if memory is None else memory} - - {name or '-'}"
            for pid, memory, kind, name in rows
        ]
        self.write()
