"""Which mlsecd this is."""

from __future__ import annotations

__all__ = ["version"]


def version() -> str:
    """The installed version; ``0+unknown`` where it runs from a bare copy."""
    from importlib import metadata  # noqa: PLC0415 - 15 ms that most commands do not need

    try:
        return metadata.version("mlsecd")
    except metadata.PackageNotFoundError:
        return "0+unknown"
