"""Model files that change, and processes that read them and are no servers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._allow import Allow, allows
from mlsecd.detectors._allow_fit import entry_of
from mlsecd.detectors._gpu_processes import as_state, printable
from mlsecd.detectors._told import Told
from mlsecd.detectors.base import Detector, DetectorState, Fit, Maturity, Section, Standing
from mlsecd.errors import BaselineError
from mlsecd.kernels import Kernels
from mlsecd.records import FileSample, FileUse, Finding, Kind, Process, Records, Severity, WatchedFile
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "IntegrityWeights", "Params"]

_HOSTS_MAX: Final = 256
_FILES_MAX: Final = 4_096
_NEVER: Final = float("-inf")
_OTHERS_WRITE: Final = 0o002
_OTHERS_READ: Final = 0o004
_ACTIONS: Final = {
    "reader": "See who it is (evidence.exe, uid, unit). A backup, scanner or deployment goes into readers; anybody "
    "else: note what left the host since (egress_bytes), and treat the weights as copied.",
    "changed": "If it was deployed, fit the baseline again. If not, take the server out of rotation: what it serves "
    "may no longer be your model. Keep the changed file, and compare it with the original.",
    "honey": "Nobody has a reason to touch this file. Find the process and how it came in; treat the host as taken.",
    "open": "chmod it: whoever may write a model file decides what the model says.",
}


class Params(base.Params, frozen=True):
    """Who may read model files."""

    readers: Annotated[
        tuple[Allow, ...],
        Meta(max_length=1024, description="who may open them; empty: the baseline's, or learning"),
    ] = ()
    private: Annotated[bool, Meta(description="whether a file that every user may read is told of")] = False
    adopt_seconds: Annotated[
        float,
        Meta(ge=0, le=31_536_000, description="a file that is gone for this long is forgotten"),
    ] = 3_600.0
    repeat_seconds: Annotated[
        float, Meta(ge=1, le=300, description="event time between repeats of a finding that goes on")
    ] = 300.0


@dataclass(slots=True)
class _File:
    """One file as it should be, and since when it is not."""

    inode: int
    size: int
    mtime_ns: int
    sampled: str | None = None
    sha256: str | None = None
    changed_ts: float | None = None


@dataclass(slots=True)
class _Host:
    """One host's model files."""

    ts: float = _NEVER
    files: dict[str, _File] = field(default_factory=dict)
    missing: dict[str, float] = field(default_factory=dict)
    told: Told = field(default_factory=Told)
    users: int = 0
    events: bool = False


class IntegrityWeights(Detector):
    """Holds digests against the baseline's or the first seen ones, and users against a list of readers."""

    name = "integrity_weights"
    consumes = frozenset({Kind.FILE})
    key = "host"
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0035", "AML.T0018", "AML.T0025")
    owasp = ("LLM02:2025", "LLM03:2025", "LLM04:2025")
    summary = "A model file changed, is gone or open to writers, or a process that is no server opened it."
    action = _ACTIONS["reader"]
    blind_spots: ClassVar[tuple[str, ...]] = (
        "Without CAP_SYS_ADMIN a reader is seen only if it holds the file at a look; most are looked at once a minute.",
        "Readers on other hosts (NFS, object stores, a copied disk) are not seen.",
        "A change of a few kilobytes between the 64 sampled blocks shows when the background pass has read the file.",
        "What was already changed when it was first seen, or fitted, is the reference.",
        "Weights that are read through an allowed process (a server that is made to send them) look allowed.",
        "Whoever is root can write to the block device below the file system, past every time stamp.",
    )
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._readers = params.readers
        self._known: dict[str, tuple[int, str | None, str | None]] = {}
        if section is not None:
            try:
                self._known = msgspec.convert(
                    section.header.get("files"), dict[str, tuple[int, str | None, str | None]]
                )
                fitted = msgspec.convert(section.header.get("allow", []), tuple[Allow, ...])
            except msgspec.ValidationError as error:
                raise BaselineError(f"{self.name}: the baseline's files cannot be used: {error}") from error
            self._readers = self._readers or fitted
        self._hosts: Keyed[_Host] = Keyed(_HOSTS_MAX, lambda _: _Host())

    def observe(self, records: Records) -> list[Finding]:
        """Fold one look at the files."""
        if not isinstance(records, FileSample):
            return []
        host = self._hosts.touch(f"{records.host}\0{int(records.synthetic)}", records.ts)
        if host is None:
            return []
        host.ts, host.users = records.ts, len({one.pid for one in records.uses})
        host.events = not any(entry.startswith("opens:") for entry in records.blind)
        honey = {one.path for one in records.files if one.honey}
        found = [finding for one in records.files for finding in self._file(host, records, one)]
        found += [finding for path in records.missing for finding in self._missing(host, records, path)]
        found += [finding for one in records.uses for finding in self._use(host, records, one, honey)]
        return found

    def _file(self, host: _Host, sample: FileSample, one: WatchedFile) -> Iterator[Finding]:
        host.missing.pop(one.path, None)
        held = host.files.get(one.path)
        if held is None:
            if len(host.files) >= _FILES_MAX:
                return
            size, sampled, sha256 = (None if sample.synthetic else self._known.get(one.path)) or (one.size, None, None)
            held = host.files[one.path] = _File(one.inode, size, one.mtime_ns, sampled, sha256)
        what, severity = self._compare(held, one)
        if what is None:
            held.changed_ts = None
            held.inode, held.mtime_ns = one.inode, one.mtime_ns
            held.sampled, held.sha256 = held.sampled or one.sampled, held.sha256 or one.sha256
        else:
            held.changed_ts = sample.ts if held.changed_ts is None else held.changed_ts
            stealth = one.mtime_ns == held.mtime_ns and one.inode == held.inode
            also = "; its modification time was not, or was put back" if stealth else ""
            reason = f'"{printable(one.path)}" {what}{also}'
            evidence = {"size": one.size, "sampled": one.sampled, "sha256": one.sha256, "expected": held.sha256}
            yield from self._report(host, sample, "changed", severity, one.path, reason, evidence)
        if one.mode & _OTHERS_WRITE:
            reason = f'every user may write to "{printable(one.path)}"'
            yield from self._report(host, sample, "open", Severity.MEDIUM, one.path, reason, {"mode": oct(one.mode)})
        elif self.params.private and one.mode & _OTHERS_READ:
            reason = f'every user may read "{printable(one.path)}"'
            yield from self._report(host, sample, "open", Severity.LOW, one.path, reason, {"mode": oct(one.mode)})

    @staticmethod
    def _compare(held: _File, one: WatchedFile) -> tuple[str | None, Severity]:
        """What of the content differs; a copy with the same content is the same."""
        if one.size != held.size:
            return f"changed: {one.size} bytes, and {held.size} before", Severity.HIGH
        for name, have, want in (("sampled", one.sampled, held.sampled), ("SHA-256", one.sha256, held.sha256)):
            if have is not None and want is not None and have != want:
                return f"changed: its {name} digest differs", Severity.HIGH
        return None, Severity.INFO

    def _missing(self, host: _Host, sample: FileSample, path: str) -> Iterator[Finding]:
        since = host.missing.setdefault(path, sample.ts)
        if len(host.missing) > _FILES_MAX:
            del host.missing[next(iter(host.missing))]
        if 0 < sample.ts - since < self.params.adopt_seconds:  # not at once: a deployment replaces files
            reason = f'"{printable(path)}" is gone'
            yield from self._report(host, sample, "changed", Severity.LOW, path, reason, {})
        elif sample.ts - since >= self.params.adopt_seconds:
            host.files.pop(path, None)

    def _use(self, host: _Host, sample: FileSample, use: FileUse, honey: set[str]) -> Iterator[Finding]:
        trap = use.path in honey
        verdict = True if not self._readers else allows(self._readers, _process(use), "")
        gone = verdict is None and use.how == "opened" and use.start_ticks is None  # too quick to be looked at
        if not trap and verdict is not False and not gone:
            return
        exe = "unreadable" if use.exe is None else printable(use.exe)
        kind = "honey" if trap else "reader"
        severity = Severity.CRITICAL if trap else Severity.MEDIUM if gone else Severity.HIGH
        how = {"open": "has open", "mapped": "has mapped", "opened": "opened"}.get(use.how, "has mapped")
        file = printable(use.path)
        reason = f'"{exe}" (pid {use.pid}, uid {use.uid}, {use.unit or use.container or "no unit"}) {how} "{file}"'
        evidence = {
            "pid": use.pid,
            "start_ticks": use.start_ticks,
            "exe": exe,
            "uid": use.uid,
            "unit": use.unit,
            "container": use.container,
            "how": use.how,
        }
        subject = f"{exe} uid={use.uid}"
        if host.told.due(f"{kind} {subject} {file}", sample.ts, self.params.repeat_seconds):
            yield self._finding(
                sample, kind, severity, ("process", f"{subject} {kind}"), reason, {**evidence, "file": file}
            )

    def _report(  # noqa: PLR0913, PLR0917 - what was found of which file
        self,
        host: _Host,
        sample: FileSample,
        kind: str,
        severity: Severity,
        path: str,
        reason: str,
        evidence: dict[str, Any],
    ) -> Iterator[Finding]:
        file = printable(path)
        if host.told.due(f"{kind} {severity} {file}", sample.ts, self.params.repeat_seconds):
            yield self._finding(sample, kind, severity, ("file", file), reason, evidence)

    def _finding(  # noqa: PLR0913, PLR0917 - a finding has this many sides
        self,
        sample: FileSample,
        kind: str,
        severity: Severity,
        subject: tuple[str, str],
        reason: str,
        evidence: dict[str, Any],
    ) -> Finding:
        return self.finding(
            ts=sample.ts,
            subject_kind=subject[0],
            subject=subject[1],
            severity=severity,
            score=1.0,
            threshold=1.0,
            reason=reason,
            action=_ACTIONS[kind],
            evidence={"kind": kind, "host": sample.host, **evidence},
            synthetic=sample.synthetic,
        )

    def standing(self) -> Standing:
        """Off where no files are configured; armed with readers; learning who reads without."""
        hosts = [host for _, host in self._hosts.items()]
        gauges = {
            "files": float(sum(len(host.files) for host in hosts)),
            "file_users": float(sum(host.users for host in hosts)),
            "allow_entries": float(len(self._readers)),
            "refused": float(self._hosts.refused),
        }
        if not hosts:
            return Standing(DetectorState.OFF, "no model files are watched ([sources.weights] paths)", gauges)
        whys = [] if any(host.events for host in hosts) else ["short readers are not seen (CAP_SYS_ADMIN)"]
        if not self._readers:
            whys.insert(0, "no readers: changes and honey files are reported, readers are not")
            return Standing(DetectorState.LEARNING, "; ".join(whys), gauges)
        return Standing(DetectorState.ARMED, "; ".join(whys), gauges)

    def snapshot(self) -> bytes:
        """Every host's state."""
        return pack(self.version, self._hosts.dump())

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state."""
        self._hosts.load(as_state(unpack(self.version, blob), list[tuple[str, int, _Host]]))

    @classmethod
    def fit(cls, records: Iterable[Records], params: Any, kernels: Kernels) -> Fit | None:  # noqa: ARG003
        """Learn digests of the files as they are at the end, and propose who may read them."""
        files: dict[str, tuple[int, str | None, str | None]] = {}
        readers: Counter[Allow] = Counter()
        seen = 0
        for one in records:
            if not isinstance(one, FileSample) or one.synthetic:
                continue
            seen += 1
            for file in one.files[:_FILES_MAX]:
                before = files.get(file.path, (0, None, None))
                same = before[0] == file.size and before[1] in {None, file.sampled}
                files[file.path] = (file.size, file.sampled, file.sha256 or (before[2] if same else None))
            honey = {file.path for file in one.files if file.honey}
            readers.update(entry_of(_process(use)) for use in one.uses if use.exe and use.path not in honey)
        if not seen:
            return None
        if not files:
            return Fit(None, "no model file was there: check [sources.weights] paths")
        entries = sorted(msgspec.json.encode(entry) for entry in readers)[:256]
        whole = sum(sha256 is not None for *_, sha256 in files.values())
        notes = (
            f"{len(files)} model files pinned, {whole} of them whole: that they do not change, not whose they are",
            f"{len(entries)} readers proposed: review them",
        )
        allow = [msgspec.json.decode(entry) for entry in entries]
        return Fit(Section({"files": files, "allow": allow}, {}), notes=notes)


def _process(use: FileUse) -> Process:
    return Process(
        pid=use.pid,
        start_ticks=use.start_ticks or 0,
        uid=use.uid,
        exe=use.exe,
        cgroup=use.cgroup,
        unit=use.unit,
        container=use.container,
    )


DETECTOR = IntegrityWeights
