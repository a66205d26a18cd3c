"""What answers which path, from a few callables that the daemon supplies."""

from __future__ import annotations

import math
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import parse_qs

import msgspec

from mlsecd.web import landing
from mlsecd.web.cells import colour
from mlsecd.web.http import HttpError, Request, Response, Route, text
from mlsecd.web.rows import Status
from mlsecd.web.status import present
from mlsecd.web.style import CSP, icon
from mlsecd.web.view import StatusView, not_ready

__all__ = ["REFRESH_SECONDS", "Pages", "ScrapeBody", "routes"]

REFRESH_SECONDS: Final = 5


class ScrapeBody(Protocol):
    """A rendered exposition; the metrics sink's ``Body`` is one."""

    @property
    def content_type(self) -> str: ...  # noqa: D102
    @property
    def data(self) -> bytes: ...  # noqa: D102
    @property
    def encoding(self) -> str | None: ...  # noqa: D102


class Pages:
    """The handlers.

    Parameters
    ----------
    metrics
        Gives the exposition for an ``Accept`` and an ``Accept-Encoding`` header.
    status
        Gives the latest view, or ``None`` before the first.
    beat_age
        Seconds since the main loop last turned.
    max_beat_age
        Older than this is not healthy.
    detail
        Whether pages show reasons and actions; only where they cannot be read from other hosts.
    reload
        Reloads the configuration and returns what is wrong with it, or ``None``; no callable, no reload over HTTP.
    """

    def __init__(  # noqa: PLR0913 - one for each page
        self,
        *,
        metrics: Callable[[str, str], ScrapeBody],
        status: Callable[[], StatusView | None],
        beat_age: Callable[[], float],
        max_beat_age: float = 30.0,
        detail: bool = True,
        reload: Callable[[], str | None] | None = None,
    ) -> None:
        self._metrics = metrics
        self._status = status
        self._beat_age = beat_age
        self._max_beat_age = max_beat_age
        self._detail = detail
        self._reload = reload
        self._made: tuple[StatusView, Status] | None = None

    def metrics(self, request: Request) -> Response:
        """``/metrics``."""
        body = self._metrics(request.headers.get("accept", ""), request.headers.get("accept-encoding", ""))
        headers = {"Vary": "Accept, Accept-Encoding"}
        if body.encoding:
            headers["Content-Encoding"] = body.encoding
        return Response(HTTPStatus.OK, body.content_type, body.data, headers)

    def healthy(self, _request: Request) -> Response:
        """``/-/healthy``: the main loop turns. GPUs and sources have no say: restarting mlsecd mends neither."""
        age = self._beat_age()
        if math.isnan(age) or age > self._max_beat_age:
            why = f"the main loop has been silent for {age:.0f} s; {self._max_beat_age:g} s are allowed"
            return text(HTTPStatus.SERVICE_UNAVAILABLE, why)
        return text(HTTPStatus.OK, "healthy")

    def ready(self, _request: Request) -> Response:
        """``/-/ready``: every source that this host can feed has delivered, and findings can be written down."""
        reasons = not_ready(self._status())
        if reasons:
            return text(HTTPStatus.SERVICE_UNAVAILABLE, "\n".join(reasons))
        return text(HTTPStatus.OK, "ready")

    def reload(self, request: Request) -> Response:
        """``POST /-/reload``."""
        if self._reload is None:
            raise HttpError(HTTPStatus.FORBIDDEN, "reload over HTTP is off: set web.reload = true, or send SIGHUP")
        _refuse_other_sites(request)
        problem = self._reload()
        if problem:
            return text(HTTPStatus.INTERNAL_SERVER_ERROR, problem)
        return text(HTTPStatus.OK, "reloaded")

    def landing(self, request: Request) -> Response:
        """``/``, refreshing by itself unless ``?refresh=0`` asks it not to."""
        wish = parse_qs(request.query[:64]).get("refresh", [""])[0]
        refresh = 0 if wish == "0" else REFRESH_SECONDS
        page = landing.render(self._present(), refresh)
        return Response(HTTPStatus.OK, "text/html; charset=utf-8", page, {"Content-Security-Policy": CSP})

    def status(self, _request: Request) -> Response:
        """``/api/v1/status``."""
        return Response(HTTPStatus.OK, "application/json", msgspec.json.encode(self._present()))

    def favicon(self, _request: Request) -> Response:
        """``/favicon.ico``: the verdict's colour."""
        view = self._status()
        level = "" if view is None else self._present().verdict.level
        return Response(HTTPStatus.OK, "image/svg+xml", icon(colour(level)))

    def _present(self) -> Status:
        """The public picture of the latest view, made once a view however many ask."""
        view = self._status()
        if view is None:
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, not_ready(None)[0], {"Retry-After": "1"})
        made = self._made
        if made is None or made[0] is not view:
            self._made = made = (view, present(view, detail=self._detail))
        return made[1]


def _refuse_other_sites(request: Request) -> None:
    """A page elsewhere can make a browser POST here, and the browser says so."""
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site", "none")
    host = request.headers.get("host", "")
    if site not in {"none", "same-origin"} or origin not in {None, f"http://{host}", f"https://{host}"}:
        raise HttpError(HTTPStatus.FORBIDDEN, "reload is not for other sites")


def routes(pages: Pages) -> dict[str, Route]:
    """The daemon's paths."""
    return {
        "/": Route(pages.landing),
        "/metrics": Route(pages.metrics),
        "/-/healthy": Route(pages.healthy),
        "/-/ready": Route(pages.ready),
        "/-/reload": Route(pages.reload, "POST"),
        "/api/v1/status": Route(pages.status),
        "/favicon.ico": Route(pages.favicon),
    }
