"""What one configuration makes: sources, the fold, the log; started and stopped as one."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

from mlsecd import app, guest, log
from mlsecd.board import Board
from mlsecd.config import Config
from mlsecd.coverage import count_fields
from mlsecd.detectors.base import Detector
from mlsecd.engines.hold import Ordered
from mlsecd.errors import SinkError, StateError
from mlsecd.findings import controls
from mlsecd.meters import Meters
from mlsecd.records import Finding
from mlsecd.runner import Health, Inbox, Runner
from mlsecd.selftest_result import Watch, path_in
from mlsecd.sinks.forensic_log import ForensicLog
from mlsecd.sinks.log_anchor import Anchor
from mlsecd.sinks.snapshot import read_snapshot, set_aside, write_snapshot

__all__ = ["Station"]

_FAILURE_SECONDS = 60.0
_CATCH_UP_SECONDS = 5.0  # a start is not held up for longer; what is left then is late, and counted


class Station:
    """Sources in, findings out, under one configuration.

    Making one checks everything that can be checked without taking anything (files, sockets,
    threads); :meth:`start` takes, :meth:`stop` gives back and returns the state for a successor.
    """

    def __init__(self, config: Config, meters: Meters, board: Board) -> None:
        self.config = config
        self.pipeline = app.make_pipeline(config, meters)
        self._meters = meters
        self._board = board
        self._say = log.get()
        self._inbox = Inbox(config.daemon.queue_max, meters, config.fold.max_held_rows)
        self.runners = [
            Runner(source, self._inbox, meters, self._tell, config.host) for source in app.make_sources(config, meters)
        ]
        self._log: ForensicLog | None = None
        self._log_blocked = False
        self._anchor: Anchor | None = None
        self._anchor_why = ""
        self._state = Path(config.daemon.state_dir) / "state.snapshot"
        self._snapshot_due = time.monotonic() + config.daemon.snapshot_seconds
        self._selftest = Watch(path_in(config.daemon.state_dir), meters, frozenset(config.detectors))
        self._failure_due: dict[str, float] = {}  # when each detector's next failure is told
        self.pipeline.fold.on_failed = self._detector_failed
        self.pipeline.fold.on_released = self._released

    def start(self, handed: dict[str, bytes] | None = None) -> None:
        """Open the log, take back the state (a predecessor's, or the disk's), begin to poll."""
        for note in self.pipeline.notes:
            self._say.warning("start", note=note)
        if expired := self.pipeline.exceptions.expired(time.time()):
            self._say.warning("exceptions have expired and mute nothing; renew or delete them", count=expired)
        self._make_state_directory()
        if self.config.sinks.forensic_log.enabled:
            self._log = ForensicLog(
                self.config.sinks.forensic_log,
                self.config.host,
                self._meters,
                technique_names=controls.catalogues()["atlas"].names,
            )
        self._anchor = self._make_anchor()
        self._restore(handed)
        self._watch_log()
        self._catch_up(time.monotonic() + _CATCH_UP_SECONDS)
        for runner in self.runners:
            runner.start()

    def _make_state_directory(self) -> None:
        try:
            self._state.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as error:
            self._say.error(
                "the state cannot be kept: a restart will begin afresh",
                why=f"{self._state.parent}: {error.strerror}",
                hint="create it for this user, or set daemon.state_dir",
            )

    def _watch_log(self) -> None:
        """One line when the forensic log begins to refuse, and one when it takes findings again."""
        if self._log is None or self._log.blocked == self._log_blocked:
            return
        self._log_blocked = self._log.blocked
        if self._log_blocked:
            hint = "findings wait in memory; make room or rights there, or set sinks.forensic_log.directory"
            self._say.error("the forensic log is blocked", why=self._log.last_error, hint=hint)
        else:
            self._say.info("the forensic log takes findings again")

    def _make_anchor(self) -> Anchor:
        params = self.config.sinks.forensic_log
        path = params.anchor if params.enabled else ""
        return Anchor(path, params.anchor_seconds, self.config.host, self._meters)

    def _tell_anchor(self, *, last: bool = False) -> None:
        """Hand over the head of the log; one line when syslog begins to refuse it, and one when it takes it again."""
        if self._log is None or self._anchor is None:
            return
        self._anchor.look(self._log.log_id, self._log.head, last=last)
        if self._anchor.why == self._anchor_why:
            return
        self._anchor_why = self._anchor.why
        if self._anchor_why:
            self._say.error("the forensic log is not anchored", why=self._anchor_why, hint="sinks.forensic_log.anchor")
        else:
            self._say.info("the forensic log is anchored again")

    def _catch_up(self, deadline: float) -> None:
        """Fold what was written while we were down, before the clock of the other sources makes it late."""
        for runner in self.runners:
            if runner.source.state():
                for records in runner.catch_up(deadline):
                    self.deliver(self.pipeline.fold.push(records))

    def _restore(self, handed: dict[str, bytes] | None) -> None:
        sections = handed
        if sections is None and os.path.exists(self._state):  # noqa: PTH110 - Path.exists raises where it may not look
            try:
                sections = read_snapshot(self._state)
            except StateError as error:
                self._left_aside("the saved state is left aside", str(error))
        if sections is None:
            return
        lost = app.restore(self.pipeline, sections)
        if self._log is not None and "log" in sections:
            self._log.resume(sections["log"])
        lost += app.resume([runner.source for runner in self.runners], sections)
        if lost and handed is None:
            self._left_aside("part of the saved state is left aside", "; ".join(lost))
        elif lost:
            self._say.warning("part of the state starts afresh", why="; ".join(lost))

    def _left_aside(self, event: str, why: str) -> None:
        """One line; the file is kept, since the mlsecd that wrote it, an older or a newer one, can go on from it."""
        kept = set_aside(self._state, time.time())
        hint = f"it is learnt anew; to go back to it, put {kept} in its place while mlsecd is stopped" if kept else ""
        self._say.warning(event, why=why, hint=hint or "it is learnt anew, and could not be kept")

    def tick(self) -> None:
        """Fold what came, deliver what was found, publish how things stand."""
        self.deliver(self.pipeline.fold.push(self._inbox.take()))
        if self._log is not None:
            self._log.retry()
            self._watch_log()
            self._tell_anchor()
        if time.monotonic() >= self._snapshot_due:
            self._save(self.state())
        self.publish()

    def deliver(self, lines: list[Finding]) -> None:
        """Findings' lines to the log, the metrics and the landing page; muted ones to the log alone."""
        if not lines:
            return
        told = [self._with_exception(line) for line in lines]
        if self._log is not None:
            self._log.append([line for line, _ in told])
        for line, muted in told:
            self._board.note(line, muted=muted is not None)
            self._say.log(
                30 if line.severity.rank >= 2 and not line.synthetic else 20,  # warning, info
                "finding",
                id=line.id,
                status=str(line.status),
                detector=line.detector,
                severity=str(line.severity),
                subject=f"{line.subject_kind} {line.subject}",
                reason=line.reason,
                synthetic=line.synthetic,
            )

    def _with_exception(self, line: Finding) -> tuple[Finding, str | None]:
        reason = self.pipeline.exceptions.muted(line.detector, line.subject, line.ts)
        if reason is None:
            return line, None
        return dataclasses.replace(line, evidence={**line.evidence, "exception": reason}), reason

    def publish(self) -> None:
        """Show metrics and landing page how things stand now."""
        self._selftest.look()
        self._board.publish(self.config, self.pipeline, [runner.health for runner in self.runners], self._log)

    def state(self) -> dict[str, bytes]:
        """Everything that a restart or a successor needs."""
        sections = app.state(self.pipeline, [runner.source for runner in self.runners])
        if self._log is not None:
            sections["log"] = self._log.state()
        return sections

    def _save(self, sections: dict[str, bytes]) -> None:
        self._snapshot_due = time.monotonic() + self.config.daemon.snapshot_seconds
        started = time.monotonic()
        try:
            write_snapshot(self._state, sections)
            self._meters.gauge("mlsecd_snapshot_last_success_timestamp_seconds", time.time())
        except (SinkError, StateError, OSError) as error:
            self._meters.count("mlsecd_snapshot_failures_total")
            self._say.error("the state cannot be saved", why=str(error))
        self._meters.gauge("mlsecd_snapshot_seconds", time.monotonic() - started)

    def stop(self, deadline: float) -> dict[str, bytes]:
        """Stop polling, fold what came, save; within ``deadline`` (monotonic), whatever hangs."""
        for runner in self.runners:
            runner.stop()
        for runner in self.runners:
            if not runner.join(max(0.05, min(deadline - time.monotonic() - 1.0, 2.0))):
                self._say.warning("a source hangs and is left behind", source=runner.source.name)
        while records := self._inbox.take():
            self.deliver(self.pipeline.fold.push(records))
        if self._log is not None:
            self._log.close()  # before the state is taken: what it still could not write is part of it
            self._tell_anchor(last=True)
        sections = self.state()
        self._save(sections)
        return sections

    def _tell(self, health: Health) -> None:
        """One line a change of a source's health."""
        if health.up:
            self._say.info("source up", source=health.name, seen=health.seen)
        else:
            self._say.warning("source down", source=health.name, why=health.why)

    def _detector_failed(self, detector: Detector, error: Exception) -> None:
        """One line a minute and detector: whoever makes one fail must not be able to flood the log."""
        now = time.monotonic()
        if now < self._failure_due.get(detector.name, now):
            return
        self._failure_due[detector.name] = now + _FAILURE_SECONDS
        frame: Any = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else ""
        self._say.error("a detector failed", detector=detector.name, why=f"{type(error).__name__}: {error}", at=where)

    def _released(self, ordered: Ordered) -> None:
        count_fields(ordered, self._meters)
        self._board.samples(ordered)
        guest.note(self.pipeline.kernels, ordered, self.config.host)
