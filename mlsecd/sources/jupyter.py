"""Whether a Jupyter server asks for authentication: from its runtime file, or by asking it on loopback.

The runtime file holds the token. Only whether it is empty leaves this module.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

import msgspec

from mlsecd.records import Process

__all__ = ["is_jupyter", "unauthenticated"]

_MAX_BYTES: Final = 64 << 10
_PROBE_SECONDS: Final = 0.5
_MAX_PROBES: Final = 4  # ports of one server that are asked
_NAMES: Final = ("jpserver", "nbserver")
_PROGRAMS: Final = ("jupyter", "jupyter-lab", "jupyter-notebook", "jupyter-server", "jupyterhub-singleuser")
_MODULES: Final = ("jupyter", "jupyterlab", "notebook", "jupyter_server", "jupyterhub.singleuser")


class _Runtime(msgspec.Struct):
    """What a runtime file says, as far as we use it."""

    token: str | None = None
    password: bool | None = None
    pid: int | None = None


def is_jupyter(cmdline: Sequence[str]) -> bool:
    """Whether a command line starts a Jupyter server: by the program, or by ``-m``. Kernels are none."""
    arguments = [one for argument in cmdline[:1] for one in argument.split(" ")] if len(cmdline) == 1 else list(cmdline)
    head = arguments[:4]
    if any(PurePosixPath(one).name in _PROGRAMS for one in head[:2]):
        return True
    return any(a == "-m" and b in _MODULES for a, b in itertools.pairwise(head))


def unauthenticated(base: str, process: Process, *, probe: bool) -> bool | None:
    """True: anybody who reaches it may run code; False: it asks; None: it cannot be told.

    Parameters
    ----------
    base
        ``/proc/PID``; files are looked for within the process's own root.
    probe
        Whether to ask it, over loopback.
    """
    said = _by_file(base, process)
    return _by_asking(process) if said is None and probe else said


def _by_file(base: str, process: Process) -> bool | None:
    directories = []
    environ = _variables(base, (b"JUPYTER_RUNTIME_DIR", b"JUPYTER_DATA_DIR", b"XDG_DATA_HOME", b"HOME"))
    if b"JUPYTER_RUNTIME_DIR" in environ:
        directories.append(environ[b"JUPYTER_RUNTIME_DIR"])
    if b"JUPYTER_DATA_DIR" in environ:
        directories.append(f"{environ[b'JUPYTER_DATA_DIR']}/runtime")
    if b"XDG_DATA_HOME" in environ:
        directories.append(f"{environ[b'XDG_DATA_HOME']}/jupyter/runtime")
    home = environ.get(b"HOME") or _home(process.uid)
    if home:
        directories.append(f"{home}/.local/share/jupyter/runtime")
    for directory in directories:
        for name in _NAMES:
            found = _read(f"{base}/root/{directory.lstrip('/')}/{name}-{process.pid}.json")
            if found is not None and found.token is not None:
                return not found.token and not found.password
    return None


def _home(uid: int | None) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_dir if uid is not None else None
    except KeyError:
        return None


def _variables(base: str, names: Sequence[bytes]) -> dict[bytes, str]:
    """These variables of the process; none where its environment may not be read."""
    try:
        fd = os.open(f"{base}/environ", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        text = os.read(fd, _MAX_BYTES)
    except OSError:
        return {}
    finally:
        os.close(fd)
    held = {}
    for line in text.split(b"\0"):
        name, equals, value = line.partition(b"=")
        if equals and name in names and value.startswith(b"/") and b".." not in value:
            held[name] = os.fsdecode(value)
    return held


def _read(path: str) -> _Runtime | None:
    """A runtime file, small and regular; the path goes through another process's root and must not be trusted."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return msgspec.json.decode(os.read(fd, _MAX_BYTES), type=_Runtime)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    finally:
        os.close(fd)


def _by_asking(process: Process) -> bool | None:
    """``/api/status`` is 200 for everybody or 403 without a token; ``/api`` itself is 200 in both cases."""
    import http.client  # noqa: PLC0415 - some 25 ms, only where a notebook is asked

    for address in process.listen[:_MAX_PROBES]:
        protocol, _, rest = address.partition(":")
        host, _, port = rest.rpartition(":")
        if protocol != "tcp" or host not in {"127.0.0.1", "0.0.0.0", "[::]", "[::1]"} or not port.isdigit():  # noqa: S104
            continue
        local = "::1" if host.startswith("[") else "127.0.0.1"
        connection = http.client.HTTPConnection(local, int(port), timeout=_PROBE_SECONDS)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/api/status", headers={"User-Agent": "mlsecd exposure check"})
            status = connection.getresponse().status
            if status in {200, 403}:
                return status == 200
    return None
