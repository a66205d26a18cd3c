"""The exception tree. Everything that mlsecd raises on purpose stands here.

MlsecdError
├── ConfigError     the configuration or the command line is wrong      (exit 2)
├── SourceError     a source could not deliver; others go on
├── RecordError     a line or a file is not what it should be
├── BaselineError   a baseline does not fit the detector that loads it
├── StateError      a snapshot cannot be restored
├── SinkError       a finding could not be delivered; loud, never fatal
└── KernelError     the backend that was asked for cannot run here
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "MALFORMED",
    "BaselineError",
    "ConfigError",
    "KernelError",
    "MlsecdError",
    "RecordError",
    "SinkError",
    "SourceError",
    "StateError",
]


class MlsecdError(Exception):
    """Anything that mlsecd itself refuses; its text is one line, meant for a person."""


class ConfigError(MlsecdError):
    """The configuration is wrong; the text says where and what to write instead."""


class SourceError(MlsecdError):
    """A source cannot deliver now; the daemon goes on with the others."""


class RecordError(MlsecdError):
    """A record, line or recording cannot be read."""


class BaselineError(MlsecdError):
    """A baseline is missing, damaged, or made for something else."""


class StateError(MlsecdError):
    """A snapshot is damaged or of another version."""


class SinkError(MlsecdError):
    """A finding could not be delivered."""


class KernelError(MlsecdError):
    """The numeric backend that was asked for cannot run on this host."""


# What Python raises where something read from a file is not of the shape that it should be.
MALFORMED: Final = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
