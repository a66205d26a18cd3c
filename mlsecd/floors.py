"""Version floors: a list that a user replaces as bulletins come, for the detectors that hold versions against it."""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from mlsecd.detectors._floors import Floor
from mlsecd.errors import ConfigError

__all__ = ["SHIPPED", "Floors", "load", "place"]

SHIPPED: Final = Path(__file__).with_name("floors.toml")
_REPLACED_BY: Final = Path("/etc/mlsecd/floors.toml")
_MAX_BYTES: Final = 1 << 20
_Rows = Annotated[tuple[Floor, ...], Meta(max_length=256)]


class Floors(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a file of floors holds."""

    updated: datetime.date
    gpu: _Rows = ()
    service: _Rows = ()


def place(file: str) -> Path:
    """Which file is meant: ``auto`` is the host's own where there is one, else the list of this package."""
    if file != "auto":
        return Path(file)
    return _REPLACED_BY if _REPLACED_BY.exists() else SHIPPED


def load(path: Path) -> Floors:
    """Read a file of floors.

    Raises
    ------
    ConfigError
        It cannot be read, or what stands in it is wrong.
    """
    try:
        with path.open("rb") as file:
            held: Any = tomllib.loads(file.read(_MAX_BYTES).decode())
        return msgspec.convert(held, Floors)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}: hint: the list that mlsecd ships is an example ({SHIPPED})") from error
