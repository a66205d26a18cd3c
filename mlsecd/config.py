"""TOML to typed structs. A wrong key is told with its file, its line and what was probably meant."""

from __future__ import annotations

import datetime
import difflib
import socket
import tomllib
import typing
from importlib import util
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mlsecd import floors, plugins
from mlsecd.detectors.base import Params as DetectorParams
from mlsecd.errors import ConfigError
from mlsecd.sources.base import Params as SourceParams
from mlsecd.toml_lines import line_of

__all__ = ["Config", "Exemption", "load", "parse"]

DEFAULT_PATH = Path("/etc/mlsecd/mlsecd.toml")

_LAST_YEAR = 2100
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


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration. ``sources`` and ``detectors`` hold the enabled and disabled ones alike."""

    daemon: Daemon = Daemon()
    fold: Fold = Fold()
    budget: Budget = Budget()
    findings: Findings = Findings()
    sinks: Sinks = Sinks()
    web: Web = Web()
    floors: Floors = Floors()
    exceptions: tuple[Exemption, ...] = ()
    sources: dict[str, SourceParams] = {}
    detectors: dict[str, DetectorParams] = {}
    disabled: frozenset[str] = frozenset()  # names of detectors that are switched off
    path: str = "(built-in)"

    @property
    def host(self) -> str:
        """The host's name in findings."""
        return self.daemon.host or socket.gethostname()

    @property
    def baseline_path(self) -> Path | None:
        """Where the baseline should be; ``None`` where none is wanted."""
        if self.daemon.baseline == "auto":
            return Path(self.daemon.state_dir) / "baseline.npz"
        return Path(self.daemon.baseline) if self.daemon.baseline else None


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "daemon": Daemon,
    "fold": Fold,
    "budget": Budget,
    "findings": Findings,
    "sinks": Sinks,
    "web": Web,
    "floors": Floors,
}


class _Reader:
    """One pass over a parsed document; collects what is wrong with file and line."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.problems: list[str] = []

    def problem(self, path: tuple[str, ...], what: str, key: str | None = None) -> None:
        line = line_of(self.text, (*path, key) if key else path)
        where = f"{self.name}:{line}" if line else self.name
        table = f" [{'.'.join(path)}]" if path else ""
        self.problems.append(f"{where}:{table} {what}")

    def unknown(self, path: tuple[str, ...], key: str, known: list[str], what: str = "key") -> None:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f': did you mean "{near[0]}"?' if near else f": known are {', '.join(known)}"
        self.problem(path, f'unknown {what} "{key}"{hint}', key)

    def struct(self, path: tuple[str, ...], table: Any, cls: type[msgspec.Struct]) -> Any:
        """``table`` as ``cls``, or its default with the problems noted."""
        if not isinstance(table, dict):
            self.problem(path[:-1], f'"{path[-1]}" must be a table', path[-1])
            return None
        known = [field.encode_name for field in msgspec.structs.fields(cls)]
        clean = {}
        for key, value in table.items():
            if key not in known:
                self.unknown(path, key, known)
            else:
                clean[key] = value
        nested = {field.name: field.type for field in msgspec.structs.fields(cls)}
        for key in [key for key in clean if _is_struct(nested[key])]:
            clean[key] = self.struct((*path, key), clean[key], nested[key])
        try:
            return msgspec.convert(clean, cls, from_attributes=True)
        except msgspec.ValidationError as error:
            what, _, at = str(error).partition(" - at `$.")
            key = at.rstrip("`").split(".")[0].split("[")[0] if at else None
            if "matching regex" in what and key:
                what = f"must be {_description(cls, key)}"
            self.problem(path, f'"{at.rstrip("`")}": {what}' if at else what, key)
            return None


def _description(cls: type[msgspec.Struct], key: str) -> str:
    """What a field's declaration says that it is: better than the regular expression that it must match."""
    metas = getattr(typing.get_type_hints(cls, include_extras=True)[key], "__metadata__", ())
    return next((meta.description for meta in metas if isinstance(meta, Meta) and meta.description), "as documented")


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def parse(text: str, name: str = "mlsecd.toml", overrides: tuple[str, ...] = ()) -> Config:
    """Read a configuration.

    Parameters
    ----------
    text
        TOML.
    name
        The file's name in messages.
    overrides
        ``section.key=value`` from ``--set``; the value is TOML, or else a plain string.

    Raises
    ------
    ConfigError
        With one line a problem, ``file:line: [table] what: hint``.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{name}: not valid TOML: {error}") from error
    if "\\u0000" in text or any("\0" in override for override in overrides):
        raise ConfigError(f"{name}: a NUL character is in it: no path or name may hold one")
    for override in overrides:
        _set(document, override)
    reader = _Reader(name, text)
    config = _read(reader, document, name)
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    return config


def _read(reader: _Reader, document: dict[str, Any], name: str) -> Config:
    made: dict[str, Any] = {"path": name}
    known = [*_SECTIONS, "sources", "detectors", "exceptions"]
    for key in document:
        if key not in known:
            reader.unknown((), key, known, "table")
    for key, cls in _SECTIONS.items():
        made[key] = reader.struct((key,), document.get(key, {}), cls) or cls()
    made["sources"] = _plugins(reader, document, "sources", plugins.sources())
    detectors, disabled = _split_enabled(document.get("detectors", {}))
    made["detectors"] = _plugins(reader, {"detectors": detectors}, "detectors", plugins.detectors())
    made["disabled"] = disabled
    _share_budget(made)
    _set_floors(reader, made)
    if made["daemon"].kernels == "cuda" and util.find_spec("numba_cuda") is None:
        reader.problem(("daemon",), '"kernels": CUDA needs `pip install "mlsecd[cuda]"`; or use "auto"', "kernels")
    made["exceptions"] = _exemptions(reader, document.get("exceptions", []))
    return Config(**made)


def _exemptions(reader: _Reader, tables: Any) -> tuple[Exemption, ...]:
    at = ("exceptions",)
    if not isinstance(tables, list):
        reader.problem((), '"exceptions" must be an array of tables: [[exceptions]]', "exceptions")
        return ()
    rows = [row for row in (reader.struct(at, table, Exemption) for table in tables) if row is not None]
    for row in rows:
        if row.detector not in plugins.detectors():
            reader.unknown(at, row.detector, list(plugins.detectors()), "detector")
        try:
            far = datetime.date.fromisoformat(row.expires).year > _LAST_YEAR
        except ValueError:
            reader.problem(at, f'"expires": {row.expires} is no day of the calendar', "expires")
        else:
            if far:
                reader.problem(
                    at, f'"expires": {row.expires} is no expiry: name a day by which to look again', "expires"
                )
    return tuple(rows)


def _split_enabled(tables: Any) -> tuple[Any, frozenset[str]]:
    """Every detector has an ``enabled`` key, and none needs to declare it."""
    if not isinstance(tables, dict):
        return tables, frozenset()
    off = {name for name, table in tables.items() if isinstance(table, dict) and table.get("enabled") is False}
    rest = {
        name: {k: v for k, v in table.items() if not (k == "enabled" and isinstance(v, bool))}
        if isinstance(table, dict)
        else table
        for name, table in tables.items()
    }
    return rest, frozenset(off)


def _plugins(reader: _Reader, document: dict[str, Any], room: str, registry: dict[str, Any]) -> dict[str, Any]:
    tables = document.get(room, {})
    if not isinstance(tables, dict):
        reader.problem((), f'"{room}" must be a table', room)
        return {}
    for name in tables:
        if name not in registry:
            reader.unknown((room,), name, list(registry), room.removesuffix("s"))
    made = {}
    for name, cls in registry.items():
        params = reader.struct((room, name), tables.get(name, {}), cls.Params)
        made[name] = cls.Params() if params is None else params
    return made


def _share_budget(made: dict[str, Any]) -> None:
    """Share the host's budget equally among the detectors that spend from it and set no share of their own."""
    spenders = [
        name
        for name, params in made["detectors"].items()
        if name not in made["disabled"] and getattr(params, "false_alarms_per_week", 0.0) is None
    ]
    for name in spenders:
        share = made["budget"].false_alarms_per_week / len(spenders)
        made["detectors"][name] = msgspec.structs.replace(made["detectors"][name], false_alarms_per_week=share)


def _set_floors(reader: _Reader, made: dict[str, Any]) -> None:
    """Hand the rows of the floors file to the detectors that hold versions against them."""
    wanted = {"gpu_posture": "gpu", "exposure_services": "service"}
    try:
        held = floors.load(floors.place(made["floors"].file))
    except ConfigError as error:
        reader.problem(("floors",), f'"file": {error}', "file")
        return
    for name, rows in wanted.items():
        params = made["detectors"][name]
        made["detectors"][name] = msgspec.structs.replace(params, floors=(*params.floors, *getattr(held, rows)))


def _set(document: dict[str, Any], override: str) -> None:
    path, equals, raw = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise ConfigError(f'--set wants section.key=value, not "{override}"')
    try:
        value = tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        value = raw
    table = document
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f'--set {path}: "{key}" is not a table')
    table[keys[-1]] = value


def load(path: str | None, overrides: tuple[str, ...] = ()) -> Config:
    """Read a file; without one, ``/etc/mlsecd/mlsecd.toml``, and the built-in defaults where that is absent.

    Raises
    ------
    ConfigError
        The file cannot be read, or what stands in it is wrong.
    """
    if path is None and not DEFAULT_PATH.exists():
        return parse("", "(built-in defaults)", overrides)
    file = Path(path) if path else DEFAULT_PATH
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{file}: cannot be read: {why}") from error
    return parse(text, str(file), overrides)
