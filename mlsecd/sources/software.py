"""Which version of a model server a process runs, as files and its environment tell; nothing of it is run or asked.

Of the environment two variables are looked at, and nothing else of it is kept.
"""

from __future__ import annotations

import os
import re
from typing import Final

from mlsecd.sources.procfs import readable

__all__ = ["TRITON_REGION", "regions", "software"]

# Triton's Python backend names its regions so; whoever may register one over HTTP reads and writes it (CVE-2025-23319).
TRITON_REGION: Final = "/dev/shm/triton_python_backend_shm_region_"  # noqa: S108 - it is what we look for
_RELEASES: Final = (b"NVIDIA_TRITON_SERVER_VERSION=", b"TRITON_SERVER_VERSION=")
_RELEASE: Final = re.compile(rb"(2[0-9]|[3-9][0-9])\.(0[1-9]|1[0-2])")  # YY.MM; the server's own 2.x is another count
_SITES: Final = (b"/site-packages/", b"/dist-packages/")
_INSTALLED: Final = re.compile(
    r"(vllm|ray|mlflow|torchserve|sglang|jupyter_server|bentoml)-(\d[0-9A-Za-z.+!]{0,40})\.dist-info"
)
_MAX_SITES: Final = 8
_MAX_REGIONS: Final = 64
_CACHED: Final = 256
_known: dict[tuple[int, int, int], tuple[str, ...]] = {}  # by device, inode and mtime of a site-packages directory


def software(base: str, maps: bytes, environ: bytes) -> tuple[str, ...]:
    """Names and versions as ``"vllm 0.8.5"``, in order: Triton's release, and Python packages that serve models.

    A package that is installed beside others need not be what runs: the command line tells that.

    Parameters
    ----------
    base
        ``/proc/PID``: paths are looked up within the process's own root, a container's say.
    maps, environ
        What ``/proc/PID/maps`` and ``environ`` hold; empty where they may not be read.
    """
    found: set[str] = set()
    for line in environ.split(b"\0"):
        for name in _RELEASES:
            if line.startswith(name) and _RELEASE.fullmatch(line.removeprefix(name)):
                found.add(f"triton {line.removeprefix(name).decode()}")
    for site in sorted(_sites(maps))[:_MAX_SITES]:
        found |= set(_installed(f"{base}/root{os.fsdecode(site)}"))
    return tuple(sorted(found))


def _sites(maps: bytes) -> set[bytes]:
    """Where mapped libraries lie: each line is looked through once, however its path was made up."""
    found: set[bytes] = set()
    for name in _SITES:
        if name not in maps:
            continue
        for line in maps.split(b"\n"):
            at = line.find(name)
            if at >= 0:
                found.add(line[line.find(b"/") : at + len(name) - 1])
    return found


def _installed(directory: str) -> tuple[str, ...]:
    """Packages of interest in one site-packages directory; listed again only where it changed."""
    try:
        stat = os.stat(directory)  # noqa: PTH116 - hot
        key = (stat.st_dev, stat.st_ino, stat.st_mtime_ns)
        if key not in _known:
            names = os.listdir(directory)  # noqa: PTH208 - hot
            if len(_known) >= _CACHED:
                del _known[next(iter(_known))]
            _known[key] = tuple(f"{at[1]} {at[2]}" for name in names if (at := _INSTALLED.fullmatch(name)))
    except OSError:
        return ()
    return _known[key]


def regions(base: str, maps: bytes) -> tuple[str, ...]:
    """Triton's shared-memory regions that a process has mapped, each with its permission bits in octal."""
    wanted = TRITON_REGION.encode()
    if wanted not in maps:
        return ()
    paths = {line[at:] for line in maps.split(b"\n") if (at := line.find(wanted)) >= 0}
    return tuple(f"{readable(path)[:1000]} {_mode(base, path)}" for path in sorted(paths)[:_MAX_REGIONS])


def _mode(base: str, path: bytes) -> str:
    try:
        return f"{os.stat(f'{base}/root{os.fsdecode(path)}').st_mode & 0o777:04o}"  # noqa: PTH116
    except OSError:
        return "?"
