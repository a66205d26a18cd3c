"""The tables of the configuration file that belong to the daemon itself, with their defaults and bounds."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = ["SECTIONS", "Budget", "Daemon", "Exemption", "Findings", "Floors", "Fold", "Sinks", "Web"]

_LISTEN = r"^(\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9_.-]*):[0-9]{1,5}$"

Seconds = Annotated[float, Meta(gt=0)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the configuration file."""


class Daemon(_Section, frozen=True, kw_only=True):
    """The process itself."""

    host: Annotated[str, Meta(max_length=253, description="this host's name in findings; default: its hostname")] = ""
    state_dir: Annotated[str, Meta(description="where state and baseline live")] = "/var/lib/mlsecd"
    tick_seconds: Annotated[float, Meta(ge=0.1, le=10, description="seconds between turns of the main loop")] = 1.0
    snapshot_seconds: Annotated[
        float, Meta(ge=5, description="seconds between snapshots of the state; a clean stop makes one more")
    ] = 300.0
    kernels: Annotated[
        Literal["auto", "cpu", "cuda"],
        Meta(description="numeric backend; auto: large batches go to a GPU while it is free; cuda: all batches"),
    ] = "auto"
    baseline: Annotated[
        str, Meta(description='baseline file; "" learns from the stream; default: STATE_DIR/baseline.npz')
    ] = "auto"
    baseline_sha256: Annotated[
        str, Meta(pattern="^([0-9a-f]{64})?$", description="pins the baseline by its digest; empty: not pinned")
    ] = ""
    queue_max: Annotated[
        int, Meta(ge=10, le=100_000, description="polls of all sources that may wait for the main loop")
    ] = 1_000


class Fold(_Section, frozen=True, kw_only=True):
    """Event time."""

    lateness_seconds: Annotated[float, Meta(ge=0, le=600, description="how long records wait for earlier ones")] = 2.0
    interval_seconds: Annotated[float, Meta(ge=1, le=3600, description="event time between judgements across keys")] = (
        10.0
    )
    join_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=60,
            description="how much later than one source's record of a request another's may complete; 0 joins nothing",
        ),
    ] = 1.0
    max_held_rows: Annotated[int, Meta(ge=1_000, description="records that may wait at once")] = 500_000


class Budget(_Section, frozen=True, kw_only=True):
    """The false-alarm promise."""

    false_alarms_per_week: Annotated[
        float, Meta(gt=0, le=1_000, description="expected false pages on this host in a week, all detectors together")
    ] = 1.0


class Findings(_Section, frozen=True, kw_only=True):
    """The life of a finding, in event time."""

    resolve_after_seconds: Annotated[
        Seconds, Meta(description="without evidence for this long, a finding is resolved")
    ] = 900.0
    update_after_seconds: Annotated[Seconds, Meta(description="at most one unchanged update in this time")] = 300.0
    max_active: Annotated[int, Meta(ge=10, description="findings that are tracked at once")] = 10_000
    top: Annotated[int, Meta(ge=1, le=200, description="active findings shown as mlsecd_finding_active series")] = 20


class ForensicLog(_Section, frozen=True, kw_only=True):
    """The tamper-evident log."""

    enabled: bool = True
    directory: Annotated[str, Meta(description="where segments are written")] = "/var/log/mlsecd"
    queue_max: Annotated[int, Meta(ge=1, description="findings kept in order while the disk refuses")] = 1_000
    max_segment_bytes: Annotated[int, Meta(ge=65_536, description="a segment is sealed at this size, bytes")] = (
        67_108_864
    )
    max_segment_seconds: Annotated[Seconds, Meta(description="a segment is sealed at this age")] = 86_400.0
    max_segments: Annotated[int, Meta(ge=2, description="older segments are deleted, and that is recorded")] = 400
    anchor: Annotated[
        str,
        Meta(
            max_length=107,
            description="syslog's Unix socket (/dev/log) that is told the head of the chain; empty: none",
        ),
    ] = ""
    anchor_seconds: Annotated[float, Meta(ge=10, le=86_400, description="seconds between two tellings")] = 300.0


class Sinks(_Section, frozen=True, kw_only=True):
    """Where findings go, beside Prometheus."""

    forensic_log: ForensicLog = ForensicLog()


class Web(_Section, frozen=True, kw_only=True):
    """HTTP: /metrics, /-/healthy, /-/ready and the landing page."""

    listen: Annotated[str, Meta(pattern=_LISTEN, description="address:port; [::1]:port for IPv6")] = "127.0.0.1:9847"
    host_names: Annotated[
        list[str], Meta(max_length=64, description="Host headers accepted beside the loopback names")
    ] = []
    config_file: Annotated[
        str, Meta(description="web.yml: TLS, client certificates, users (exporter-toolkit's format); empty: none")
    ] = ""
    reload: Annotated[bool, Meta(description="allow POST /-/reload")] = False
    max_connections: Annotated[int, Meta(ge=2, le=1_024, description="connections served at once")] = 32
    max_series: Annotated[int, Meta(ge=100, description="series exported at the most")] = 10_000


class Floors(_Section, frozen=True, kw_only=True):
    """Versions below which a hole is known."""

    file: Annotated[
        str,
        Meta(
            min_length=1,
            description="the oldest good versions; auto: /etc/mlsecd/floors.toml where it is, else the package's",
        ),
    ] = "auto"


class Exemption(_Section, frozen=True, kw_only=True):
    """Mutes the page for one subject of one detector until a date; never the log."""

    detector: str
    subject: Annotated[str, Meta(description="the finding's subject, or a glob over it")]
    reason: Annotated[str, Meta(min_length=3, description="who decided this, and why")]
    expires: Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$", description="the last day it holds, YYYY-MM-DD (UTC)")]


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "daemon": Daemon,
    "fold": Fold,
    "budget": Budget,
    "findings": Findings,
    "sinks": Sinks,
    "web": Web,
    "floors": Floors,
}
