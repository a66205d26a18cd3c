"""Allow lists of processes: typed conditions, globs, and an honest "cannot tell"."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from mlsecd.records import Process

__all__ = ["Allow", "Answer", "Circumstances", "allows", "glob_matches", "is_deleted", "is_memfd", "path_of"]

Answer = bool | None  # None: what would decide it could not be read

_DELETED = " (deleted)"
_Glob = Annotated[str, Meta(max_length=1024)]


class Allow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One entry of an allow list: it matches a process that fulfils every condition that it states.

    Text conditions are globs: ``*`` and ``?`` stay within a path's part, ``**`` crosses ``/``, all
    other characters are themselves. ``unit``, ``container`` and ``cgroup`` may be ``""``: the process
    is in none; ``container = "*"`` is any container, and never "none".
    """

    exe: Annotated[str, Meta(min_length=1, max_length=1024, description="executable, a glob over its path")] | None = (
        None
    )
    uid: Annotated[int, Meta(ge=0, description="user id")] | None = None
    unit: Annotated[_Glob, Meta(description='systemd unit, a glob; "" for none')] | None = None
    container: Annotated[_Glob, Meta(description='container id, a glob; "" for none')] | None = None
    cgroup: Annotated[_Glob, Meta(description="cgroup path, a glob")] | None = None
    gpu: Annotated[_Glob, Meta(description="GPU UUID, a glob")] | None = None
    gpu_instance: Annotated[int, Meta(ge=0, description="MIG: the GPU instance that it must run on alone")] | None = (
        None
    )
    parent: Annotated[_Glob, Meta(description="executable of the parent, a glob")] | None = None
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="digest of the executable, hex")] | None = None

    def __post_init__(self) -> None:
        """Refuse an entry that would allow everything: it is a slip, and a costly one."""
        if all(getattr(self, name) is None for name in self.__struct_fields__):
            raise ValueError("an allow entry needs at least one condition")


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is known of a process beside its own table row."""

    parent: str | None = None  # its parent's executable
    instances: tuple[int, ...] = ()  # GPU instances (MIG) that it runs on


def is_memfd(exe: str | None) -> bool:
    """Whether a program runs from anonymous memory and was never a file."""
    return exe is not None and exe.startswith("/memfd:")


def is_deleted(exe: str | None) -> bool:
    """Whether the file of a running program was unlinked or replaced."""
    return exe is not None and exe.endswith(_DELETED) and not is_memfd(exe)


def path_of(exe: str) -> str:
    """The path, without what the kernel appends once the file is gone."""
    return exe.removesuffix(_DELETED)


@functools.lru_cache(maxsize=1024)
def _pattern(glob: str) -> re.Pattern[str]:
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", glob)
    return re.compile("".join(parts.get(piece, re.escape(piece)) for piece in pieces), re.DOTALL)


def glob_matches(glob: str, value: str | None) -> bool:
    """Whether text fits a glob, as in :class:`Allow`; text that is not there fits none."""
    return value is not None and _pattern(glob).fullmatch(value) is not None


def _text(glob: str | None, value: str | None, *, unread: bool) -> Answer:
    """A glob over a value; a value that does not exist fulfils "" alone."""
    if glob is None:
        return True
    if value is None:
        return None if unread else glob == ""
    return _pattern(glob).fullmatch(value) is not None


def _matches(entry: Allow, process: Process, gpu: str, around: Circumstances) -> Answer:
    no_cgroup = process.cgroup is None  # then an absent unit or container was never read
    exe = None if process.exe is None else path_of(process.exe)
    digest = None if process.depth is None else process.depth.sha256
    answers = [
        _text(entry.exe, exe, unread=True),
        True if entry.uid is None else None if process.uid is None else process.uid == entry.uid,
        _text(entry.unit, process.unit, unread=no_cgroup),
        _text(entry.container, process.container, unread=no_cgroup),
        _text(entry.cgroup, process.cgroup, unread=True),
        _text(entry.gpu, gpu, unread=False),
        True if entry.gpu_instance is None else around.instances == (entry.gpu_instance,),
        _text(entry.parent, around.parent, unread=True),
        True if entry.sha256 is None else None if digest is None else digest == entry.sha256,
    ]
    return False if False in answers else None if None in answers else True


def allows(entries: Iterable[Allow], process: Process, gpu: str, around: Circumstances | None = None) -> Answer:
    """Whether any entry allows this process on this GPU.

    ``False`` holds whatever the unread facts may be: no entry could match. ``None`` says that it
    hangs on a fact that could not be read. An executable that was deleted goes by its former path.
    """
    around = around or Circumstances()
    answers = [_matches(entry, process, gpu, around) for entry in entries]
    return True if True in answers else None if None in answers else False
