"""``mlsecd top``: how things stand, on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from mlsecd import ask
from mlsecd.commands.top_view import lines
from mlsecd.config import Config
from mlsecd.errors import SourceError

__all__ = ["run"]

_ENTER: Final = "\033[?1049h\033[?25l"  # another screen, no cursor
_LEAVE: Final = "\033[?25h\033[?1049l"
_HOME: Final = "\033[H"
_REST: Final = "\033[J"


def run(loaded: Config, listen: str | None, seconds: float, *, once: bool, as_json: bool) -> int:
    """Until Ctrl-C or SIGTERM; or once: 1 where a real finding of high or critical severity is open, else 0."""
    if once or as_json or not sys.stdout.isatty():
        return _once(ask.status(loaded, listen), as_json=as_json)
    before: dict[str, Any] = {}
    with _screen():
        while True:
            now = _status(loaded, listen)
            size = shutil.get_terminal_size()
            shown = _fitted(lines(now, before, size.columns, colour=True), size)
            sys.stdout.write(_HOME + "".join(f"{line}\033[K\n" for line in shown) + _REST)
            sys.stdout.flush()
            before = now if "now" in now else before
            time.sleep(seconds)


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """Another screen, until Ctrl-C or SIGTERM; then the terminal as it was.

    Ctrl-C is the only key that ends the view. It does so, too, where SIGINT was ignored when we were started, which is
    how shells start what scripts put into the background: Python would leave it ignored.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _end)
    try:
        print(_ENTER, end="")
        yield
    finally:
        with contextlib.suppress(termios.error):  # what nobody has read yet need not be: it would keep us waiting
            termios.tcflush(sys.stdout.fileno(), termios.TCOFLUSH)
        print(_LEAVE, end="", flush=True)


def _end(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def _fitted(shown: list[str], size: os.terminal_size) -> list[str]:
    """As much as the terminal holds, and how much it does not."""
    height = size.lines - 1
    if len(shown) <= height:
        return shown
    return [*shown[: height - 1], f"… {len(shown) - height + 1} lines more: mlsecd top --once"[: size.columns]]


def _status(loaded: Config, listen: str | None) -> dict[str, Any]:
    """The status, or why there is none: a daemon that restarts does not end the view."""
    try:
        return ask.status(loaded, listen)
    except SourceError as error:
        return {"error": str(error)}


def _once(status: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(status))
    else:
        width = shutil.get_terminal_size((120, 40)).columns if sys.stdout.isatty() else 160
        print("\n".join(lines(status, {}, width, colour=sys.stdout.isatty())))
    severe = {"high", "critical"}
    return int(any(one["severity"] in severe and not one["synthetic"] for one in status.get("active", ())))
