"""The keys of ``[sources.processes]``."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from mlsecd.sources.base import Params
from mlsecd.sources.units import PLACES

__all__ = ["ProcessesParams"]


class ProcessesParams(Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configuration of the process table."""

    interval_seconds: Annotated[float, Meta(gt=0, le=3600, description="seconds between two sweeps of /proc")] = 5.0
    refresh_seconds: Annotated[
        float,
        Meta(ge=0, description="seconds after which a known process's command line, user and cgroup are read again"),
    ] = 120.0
    listen_seconds: Annotated[
        float, Meta(ge=0, description="seconds between two scans for listening sockets; 0 turns them off")
    ] = 60.0
    depth_seconds: Annotated[
        float,
        Meta(ge=0, description="seconds between two closer looks at a process that holds a GPU or listens; 0: none"),
    ] = 15.0
    search_seconds: Annotated[
        float, Meta(gt=0, description="seconds within which a known process that opens a GPU is noticed")
    ] = 60.0
    digest: Annotated[bool, Meta(description="whether executables of processes that hold a GPU are hashed")] = True
    probe_jupyter: Annotated[
        bool, Meta(description="whether Jupyter servers are asked on loopback if they answer without a token")
    ] = False
    unit_directories: Annotated[
        tuple[str, ...],
        Meta(max_length=16, description="where systemd's unit files lie, the strongest first; none: they are not read"),
    ] = PLACES
    device_prefix: Annotated[str, Meta(min_length=2, description="how the paths of GPU device nodes begin")] = (
        "/dev/nvidia"
    )
    max_processes: Annotated[int, Meta(gt=0, le=1 << 22, description="most processes in one table")] = 32_768
    max_table_bytes: Annotated[
        int, Meta(ge=1 << 16, description="most memory that one table may take, bytes, about")
    ] = 32 << 20
    cmdline_bytes: Annotated[
        int, Meta(ge=64, le=1 << 17, description="bytes kept of a command line; the rest is cut")
    ] = 2048
    procfs: Annotated[str, Meta(min_length=1, description="where /proc is mounted")] = "/proc"
