"""From a process's cgroup file to its systemd unit and its container: a pure function of bytes."""

from __future__ import annotations

import functools
import re
from typing import Final, NamedTuple

__all__ = ["Placement", "placement"]

# 64 hex digits name a container in every runtime we know: docker-ID.scope, libpod-ID.scope,
# cri-containerd-ID.scope, crio-ID.scope, nerdctl-ID.scope, /docker/ID, /kubepods/.../podUID/ID,
# and the cgroupfs form SLICE:cri-containerd:ID.
_CONTAINER: Final = re.compile(r"(?:^|[-:])([0-9a-f]{64})(?:\.scope)?$")
_UNITS: Final = (".service", ".scope", ".socket", ".mount", ".swap")
_CACHED: Final = 4096  # distinct cgroups; one serves all processes of a unit


class Placement(NamedTuple):
    """Where a process runs, as the kernel's cgroups tell it."""

    cgroup: str | None
    unit: str | None
    container: str | None


@functools.lru_cache(maxsize=_CACHED)
def placement(raw: bytes) -> Placement:
    """Read the text of /proc/PID/cgroup: version 2, version 1, or the two side by side."""
    paths: dict[str, str] = {}
    for line in raw.decode("utf-8", "backslashreplace").split("\n"):
        _, first, rest = line.partition(":")
        controllers, second, path = rest.partition(":")
        if first and second:
            paths[controllers] = path.removesuffix(" (deleted)")
    # "" is the unified hierarchy (version 2); version 1 keeps systemd's tree under a name of its own.
    ranked = [paths[key] for key in ("", "name=systemd") if paths.get(key, "/") != "/"]
    ranked += sorted(path for key, path in paths.items() if key not in ("", "name=systemd") and path != "/")
    for path in ranked:
        container = _container(path)
        if container is not None:
            return Placement(path, _first_unit(ranked), container)
    return Placement(ranked[0] if ranked else paths.get("", "/") if paths else None, _first_unit(ranked), None)


def _container(path: str) -> str | None:
    """The outermost container: that one was made by the host's runtime, inner ones by whoever is inside."""
    for part in path.split("/"):
        found = _CONTAINER.search(part)
        if found and "conmon" not in part:  # the monitor of a container runs on the host
            return found[1]
    return None


def _first_unit(paths: list[str]) -> str | None:
    return next((unit for path in paths if (unit := _unit(path)) is not None), None)


def _unit(path: str) -> str | None:
    """The unit that the host's systemd started: the first one below the slices.

    What lies deeper is written by whoever the unit was delegated to, so a deeper name proves nothing:
    anyone may name a group in an own user manager ``vllm.service``. Units of a user manager are
    therefore given as ``user@UID.service/NAME``.
    """
    parts = [part for part in path.split("/") if part and not part.endswith(".slice")]
    if not parts or not parts[0].endswith(_UNITS):
        return None
    unit = _unescaped(parts[0])
    if unit.startswith("user@"):
        inner = [part for part in parts[1:] if part.endswith(_UNITS)]
        if inner:
            return f"{unit}/{_unescaped(inner[-1])}"
    return unit


def _unescaped(part: str) -> str:
    """Systemd puts ``_`` before names that the kernel would take for its own files."""
    return part.removeprefix("_")
