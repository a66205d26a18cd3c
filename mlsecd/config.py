"""TOML to typed structs. A wrong key is told with its file, its line and what was probably meant."""

from __future__ import annotations

import datetime
import socket
import tomllib
from importlib import util
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from mlsecd import floors, plugins
from mlsecd.config_reader import TableReader
from mlsecd.config_sections import SECTIONS, Budget, Daemon, Exemption, Findings, Floors, Fold, Sinks, Web
from mlsecd.detectors._launches import Launch
from mlsecd.detectors.base import Params as DetectorParams
from mlsecd.errors import ConfigError
from mlsecd.sources.base import Params as SourceParams

__all__ = ["Config", "Exemption", "load", "parse"]

DEFAULT_PATH: Final = Path("/etc/mlsecd/mlsecd.toml")
_LAST_YEAR: Final = 2100

_Row = TypeVar("_Row", bound=msgspec.Struct)


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
    launches: tuple[Launch, ...] = ()
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
    reader = TableReader(name, text)
    config = _read(reader, document, name)
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    return config


def _read(reader: TableReader, document: dict[str, Any], name: str) -> Config:
    made: dict[str, Any] = {"path": name}
    known = [*SECTIONS, "sources", "detectors", "exceptions", "launches"]
    for key in document:
        if key not in known:
            reader.unknown((), key, known, "table")
    for key, cls in SECTIONS.items():
        made[key] = reader.struct((key,), document.get(key, {}), cls) or cls()
    made["sources"] = _plugins(reader, document, "sources", plugins.sources())
    detectors, disabled = _split_enabled(reader, document.get("detectors", {}))
    made["detectors"] = _plugins(reader, {"detectors": detectors}, "detectors", plugins.detectors())
    made["disabled"] = disabled
    _share_budget(made)
    _set_floors(reader, made)
    if made["daemon"].kernels == "cuda" and util.find_spec("numba_cuda") is None:
        reader.problem(("daemon",), '"kernels": CUDA needs `pip install "mlsecd[cuda]"`; or use "auto"', "kernels")
    made["exceptions"] = _exemptions(reader, document)
    made["launches"] = _rows(reader, document, "launches", Launch)
    _hand_down_launches(made)
    return Config(**made)


def _rows(reader: TableReader, document: dict[str, Any], key: str, cls: type[_Row]) -> tuple[_Row, ...]:
    tables = document.get(key, [])
    if not isinstance(tables, list):
        reader.problem((), f'"{key}" must be an array of tables: [[{key}]]', key)
        return ()
    return tuple(row for row in (reader.struct((key,), table, cls) for table in tables) if row is not None)


def _exemptions(reader: TableReader, document: dict[str, Any]) -> tuple[Exemption, ...]:
    at, rows = ("exceptions",), _rows(reader, document, "exceptions", Exemption)
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
    return rows


def _split_enabled(reader: TableReader, tables: Any) -> tuple[Any, frozenset[str]]:
    """Every detector has an ``enabled`` key, and none needs to declare it."""
    if not isinstance(tables, dict):
        return tables, frozenset()
    rest, off = {}, set()
    for name, table in tables.items():
        rest[name] = table
        if not isinstance(table, dict) or "enabled" not in table:
            continue
        rest[name] = {key: value for key, value in table.items() if key != "enabled"}
        if not isinstance(table["enabled"], bool):
            reader.problem(("detectors", name), '"enabled": write true or false, without quotes', "enabled")
        elif not table["enabled"]:
            off.add(name)
    return rest, frozenset(off)


def _plugins(reader: TableReader, document: dict[str, Any], room: str, registry: dict[str, Any]) -> dict[str, Any]:
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


def _set_floors(reader: TableReader, made: dict[str, Any]) -> None:
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


def _hand_down_launches(made: dict[str, Any]) -> None:
    """Tell the detectors that look at accounts what was announced."""
    for name, params in made["detectors"].items():
        if hasattr(params, "launches"):
            rows = (*params.launches, *made["launches"])
            made["detectors"][name] = msgspec.structs.replace(params, launches=rows)


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
        text = file.read_text("utf-8-sig")  # some editors put a mark before the first byte
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{file}: cannot be read: {why}") from error
    return parse(text, str(file), overrides)
