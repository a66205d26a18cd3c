"""``mlsecd record``."""

from __future__ import annotations

import contextlib
import datetime
import functools
import signal
import sys
import time
from pathlib import Path

from mlsecd import app, config, log
from mlsecd.engines.fold import Fold
from mlsecd.errors import ConfigError
from mlsecd.meters import Meters
from mlsecd.recorder import Recorder
from mlsecd.records import Kind
from mlsecd.runner import Health, Inbox, Runner
from mlsecd.waker import Waker

__all__ = ["run"]


def run(file: str, seconds: float | None, path: str | None, overrides: tuple[str, ...]) -> int:
    """Poll the sources and write what the fold releases, until told to stop."""
    loaded = config.load(path, overrides)
    meters = Meters()
    sources = app.make_sources(loaded, meters)
    if not sources:
        raise ConfigError(f"{loaded.path}: every source is switched off: nothing to record")
    recorder = Recorder(Path(file))
    fold = app.make_fold(loaded, meters)
    fold.on_released = recorder.write
    inbox = Inbox(loaded.daemon.queue_max, meters)
    requests = frozenset(source.name for source in sources if Kind.REQUEST in source.emits)
    tell = functools.partial(_tell, requests)
    runners = [Runner(source, inbox, meters, tell, loaded.host) for source in sources]
    stop = Waker()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    _begin(file, seconds, requests)
    try:
        _record(fold, inbox, runners, stop, seconds)
    finally:
        recorder.close()
    print(f"{recorder.rows:,} records in {file}", file=sys.stderr)
    return 0


def _begin(file: str, seconds: float | None, requests: frozenset[str]) -> None:
    until = ""
    if seconds is not None:
        with contextlib.suppress(OverflowError, ValueError):  # beyond the calendar is for ever
            end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
            until = f" until {end:%Y-%m-%d %H:%M:%S} UTC"
    print(f"recording to {file}{until}; Ctrl-C to stop", file=sys.stderr)
    if not requests:
        print("no request source is switched on: the recording will hold no requests", file=sys.stderr)


def _record(fold: Fold, inbox: Inbox, runners: list[Runner], stop: Waker, seconds: float | None) -> None:
    end = None if seconds is None else time.monotonic() + seconds
    for runner in runners:
        runner.start()
    asked = False
    while not asked and (end is None or time.monotonic() < end):
        asked = stop.wait(0.5 if end is None else min(0.5, end - time.monotonic()))
        fold.push(inbox.take())
    for runner in runners:
        runner.stop()
    for runner in runners:
        runner.join(2.0)
    fold.push(inbox.take())
    fold.finish()


def _tell(requests: frozenset[str], health: Health) -> None:
    """Say a source's change; ``requests`` are the sources of requests."""
    if health.up:
        log.get().info("source up", source=health.name, seen=health.seen)
    else:
        more = {"note": "the recording will hold no requests from it"} if health.name in requests else {}
        log.get().warning("source down", source=health.name, why=health.why, **more)
