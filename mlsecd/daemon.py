"""The daemon: one loop. Signals set flags; the loop acts on them, ticks, and tells systemd that it lives."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

from mlsecd import config, log
from mlsecd.board import Board
from mlsecd.config import Config
from mlsecd.errors import MlsecdError
from mlsecd.front import Front
from mlsecd.meters import Meters
from mlsecd.notify import Notifier
from mlsecd.station import Station
from mlsecd.waker import Waker

__all__ = ["Daemon", "run"]

_STOP_SECONDS = 4.0  # of the 5 s in which SIGTERM is answered


def run(path: str | None, overrides: tuple[str, ...]) -> int:
    """Run the daemon on a configuration file until it is told to stop."""
    return Daemon(lambda: config.load(path, overrides)).run()


class Daemon:
    """One loop over a :class:`~mlsecd.station.Station`, which is what a configuration makes.

    A reload makes a new station from the new configuration and hands it the old one's state; where
    the new one cannot be made, the old one goes on. Counters and the HTTP front live through it.
    """

    def __init__(self, load: Callable[[], Config]) -> None:
        self._load = load
        self._log = log.get()
        self._notify = Notifier()
        self._wake = Waker()
        self._stop = False
        self._reload = False
        self._meters = Meters()
        self.board = Board(self._meters)

    def run(self) -> int:
        """Start, serve, drain; 0 after a clean stop."""
        self._install_signals()
        loaded = self._load()
        station = Station(loaded, self._meters, self.board)
        front = Front(loaded, self._meters, self.board, self._reload_by_http)
        station.start()
        station.tick()
        front.show()
        self._notify.ready(f"listening on {front.listening}")
        self._log.info("ready", listen=front.listening, config=loaded.path)
        try:
            while not self._stop:
                self._wake.wait(station.config.daemon.tick_seconds)
                if self._reload:
                    self._reload = False
                    station, front = self._reloaded(station, front)
                station.tick()
                front.show()
                self._notify.alive(self.board.status_line())
        finally:
            self._notify.stopping()
            station.stop(time.monotonic() + _STOP_SECONDS)
            front.stop()
            self._log.info("stopped")
        return 0

    def _install_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # a test drives the daemon in a thread, and ends it by `stop`
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: self.stop())
        signal.signal(signal.SIGHUP, lambda *_: self.reload())

    def stop(self) -> None:
        """Ask the loop to end."""
        self._stop = True
        self._wake.set()

    def reload(self) -> None:
        """Ask the loop to read the configuration again."""
        self._reload = True
        self._wake.set()

    def _reload_by_http(self) -> str | None:
        """Check the configuration first, so that the caller learns what is wrong with it."""
        try:
            self._load()
        except MlsecdError as error:
            return str(error)
        self.reload()
        return None

    def _reloaded(self, old: Station, front: Front) -> tuple[Station, Front]:
        """The successor and its front; on any error the old ones, and a gauge that says so."""
        self._notify.reloading()
        try:
            loaded = self._load()
            new = Station(loaded, self._meters, self.board)
            front = front.moved(loaded)
        except Exception as error:  # noqa: BLE001 - a reload must never end what runs
            self._tell_failed_reload(error)
            new = old
        else:
            new = self._succeed(old, new)
        self._notify.ready(f"listening on {front.listening}")
        return new, front

    def _tell_failed_reload(self, error: Exception) -> None:
        self.board.reload_failed()
        why = str(error) if isinstance(error, MlsecdError) else f"{type(error).__name__}: {error}"
        self._log.error("reload failed; the old configuration stays", why=why)

    def _succeed(self, old: Station, new: Station) -> Station:
        """Start the new station on the old one's state; where it cannot take its files, one like the old."""
        state = old.stop(time.monotonic() + _STOP_SECONDS)
        try:
            new.start(state)
        except Exception as error:  # noqa: BLE001 - see above
            self._tell_failed_reload(error)
            again = Station(old.config, self._meters, self.board)
            again.start(state)
            return again
        self.board.reloaded(time.time())
        self._log.info("reloaded", config=new.config.path)
        return new
