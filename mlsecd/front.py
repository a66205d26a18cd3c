"""The HTTP front: metrics and pages of a board, served from threads of their own."""

from __future__ import annotations

import time
from collections.abc import Callable

from mlsecd import log
from mlsecd.board import Board
from mlsecd.config import Config
from mlsecd.meters import Meters
from mlsecd.sinks.prometheus import PrometheusSink
from mlsecd.web.access import Access
from mlsecd.web.routes import Pages, routes
from mlsecd.web.server import Limits, WebServer

__all__ = ["Front"]


class Front:
    """A web server and the metrics that it serves, under one ``[web]`` configuration."""

    def __init__(self, config: Config, meters: Meters, board: Board, reload: Callable[[], str | None]) -> None:
        self._config = config
        self._meters = meters
        self._board = board
        self._reload = reload
        self._beat = time.monotonic()
        self._sink = PrometheusSink(meters, top=config.findings.top, max_series=config.web.max_series)
        web = config.web
        access = Access(web.config_file, lambda why: log.get().error("web.yml stays as it was", why=why))
        pages = Pages(
            metrics=self._sink.body,
            status=lambda: board.status,
            beat_age=lambda: time.monotonic() - self._beat,
            detail=_loopback(web.listen) or access.authenticates,
            reload=reload if web.reload else None,
        )
        self._server = WebServer(
            web.listen,
            routes(pages),
            meters,
            host_names=web.host_names,
            limits=Limits(connections=web.max_connections),
            access=access,
            on_error=lambda path, error: log.get().error("a page failed", path=path, why=repr(error)),
        )
        self._sink.start()
        self._server.start()

    @property
    def listening(self) -> str:
        """The landing page's address."""
        return self._server.url

    def show(self) -> None:
        """Serve what the board says now; the call itself is the loop's heartbeat."""
        self._beat = time.monotonic()
        if self._board.metrics is not None:
            self._sink.publish(self._board.metrics)

    def moved(self, config: Config) -> Front:
        """The front for a new configuration: this one, where nothing of it changed.

        Raises :class:`~mlsecd.errors.ConfigError` where the new address cannot be taken; this one then goes on.
        """
        if (config.web, config.findings.top) == (self._config.web, self._config.findings.top):
            return self
        if config.web.listen.rpartition(":")[2] == self._config.web.listen.rpartition(":")[2]:
            return self._replaced(config)
        successor = Front(config, self._meters, self._board, self._reload)
        self.stop()
        return successor

    def _replaced(self, config: Config) -> Front:
        """A successor on the same port, which must be free first; one like this where that cannot be made."""
        self.stop()
        try:
            return Front(config, self._meters, self._board, self._reload)
        except Exception as error:  # noqa: BLE001 - whatever it is, there must be a front
            log.get().error("the new web configuration cannot be served; the old one stays", why=str(error))
            return Front(self._config, self._meters, self._board, self._reload)

    def stop(self) -> None:
        """Stop serving."""
        self._server.stop()
        self._sink.stop()


def _loopback(listen: str) -> bool:
    """Whether only this host can read the pages: elsewhere they keep reasons and actions to themselves."""
    return listen.startswith(("127.", "localhost:", "[::1]:"))
