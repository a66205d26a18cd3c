"""Listening Unix sockets: bound by us, with care for what stands in their place, or handed over by systemd."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mlsecd.errors import SourceError

__all__ = ["Listener", "bind_datagram", "inherited", "listen", "peer_uid"]

_PATH_BYTES: Final = 107  # what sockaddr_un holds beside its closing NUL
_BACKLOG: Final = 64
_FIRST_INHERITED: Final = 3  # sd_listen_fds(3)
_MAX_INHERITED: Final = 64
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


@dataclass(slots=True)
class Listener:
    """A listening socket, and the file that stands for it where we made one."""

    socket: socket.socket
    kind: int  # SOCK_SEQPACKET or SOCK_STREAM
    path: str = ""  # "": systemd made it, and keeps it
    identity: tuple[int, int, int] = (0, 0, 0)  # of the file; see _identity

    def standing(self) -> str:
        """What became of the file: ``"ours"``, ``"missing"`` or ``"foreign"``."""
        if not self.path:
            return "ours"
        try:
            status = os.lstat(self.path)
        except OSError:
            return "missing"
        return "ours" if _identity(status) == self.identity else "foreign"

    def close(self) -> None:
        """Stop listening, and remove the file where it is still ours."""
        if self.standing() == "ours" and self.path:
            Path(self.path).unlink(missing_ok=True)
        self.path = ""
        self.socket.close()


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    """The time of making tells files apart that were given the same inode, one after the other."""
    return (status.st_dev, status.st_ino, status.st_mtime_ns)


def listen(path: str, kind: int, mode: int, group: str) -> Listener:
    """Bind and listen. A file that a dead daemon left is replaced; anything else is left alone.

    Raises
    ------
    SourceError
        The path cannot be used; the text says why and what to do.
    """
    with _place_for(path, kind):
        return _bound(path, kind, mode, group)


def bind_datagram(path: str, mode: int, group: str) -> tuple[socket.socket, tuple[int, int]]:
    """A bound datagram socket, and the (device, inode) of its file.

    Raises
    ------
    SourceError
        As :func:`listen`.
    """
    with _place_for(path, socket.SOCK_DGRAM):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            os.fchmod(sock.fileno(), 0)  # nobody may write until the file has its mode
            sock.bind(path)
            status = os.lstat(path)
            if group:
                os.chown(path, -1, _group_id(group))
            Path(path).chmod(mode)
        except BaseException:
            sock.close()
            raise
    return sock, (status.st_dev, status.st_ino)


@contextlib.contextmanager
def _place_for(path: str, kind: int) -> Iterator[None]:
    """Make room at a path for a socket, and say in plain words why it cannot be made."""
    if len(os.fsencode(path)) > _PATH_BYTES:
        raise SourceError(f"{path}: longer than the {_PATH_BYTES} bytes that a Unix socket's path may have")
    try:
        Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _clear(path, kind)
        yield
    except OSError as error:
        reason = (error.strerror or "cannot be bound").lower()
        hint = (
            " (systemd's RuntimeDirectory= makes the directory)" if error.errno in (errno.EACCES, errno.EROFS) else ""
        )
        raise SourceError(f"{path}: {reason}{hint}") from error


def _clear(path: str, kind: int) -> None:
    """Remove a socket that nobody listens on."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise SourceError(f"{path}: exists and is no socket; move it away, or configure another path")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(0)
        answer = probe.connect_ex(path)
    if answer == errno.ECONNREFUSED:
        Path(path).unlink(missing_ok=True)
    elif answer in (0, errno.EAGAIN, errno.EPROTOTYPE):
        raise SourceError(f"{path}: another process listens there; is mlsecd running already?")
    elif answer != errno.ENOENT:
        raise SourceError(f"{path}: cannot tell whether anybody listens there: {os.strerror(answer).lower()}")


def _bound(path: str, kind: int, mode: int, group: str) -> Listener:
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        sock.settimeout(0)
        sock.bind(path)
        status = os.lstat(path)
        made = Listener(sock, kind, path, _identity(status))
    except OSError:
        sock.close()
        raise
    try:
        # Before listen() nobody can connect, whatever mode the file was made with.
        if group:
            os.chown(path, -1, _group_id(group))
        Path(path).chmod(mode)
        sock.listen(_BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise SourceError(f'no group "{group}" on this host') from None


def inherited(
    paths: Mapping[int, str], environ: Mapping[str, str], pid: int, first: int = _FIRST_INHERITED
) -> list[Listener]:
    """The sockets that systemd's socket activation handed over and that are meant for us.

    Meant for us are listening Unix sockets of a wanted kind that stand at the configured path, or whose
    name (``FileDescriptorName=``) begins with ``ingest``. They are duplicated, so that after a reload
    the next owner finds them again.

    Parameters
    ----------
    paths
        The configured path by kind of socket.
    environ
        Where ``LISTEN_PID``, ``LISTEN_FDS`` and ``LISTEN_FDNAMES`` stand.
    pid
        Our process number: the variables of a parent are not for us.
    first
        The first descriptor that is handed over.
    """
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(pid) or not count.isdecimal():
        return []
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[int, Listener] = {}
    for number in range(min(int(count), _MAX_INHERITED)):
        name = names[number] if number < len(names) else ""
        listener = _adopt(first + number, name, paths)
        if listener is not None and found.setdefault(listener.kind, listener) is not listener:
            listener.close()
    return list(found.values())


def _adopt(fd: int, name: str, paths: Mapping[int, str]) -> Listener | None:
    try:
        sock = socket.socket(fileno=os.dup(fd))
    except OSError:
        return None
    try:
        wanted = sock.family == socket.AF_UNIX and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if wanted and sock.type in paths and (name.startswith("ingest") or sock.getsockname() == paths[sock.type]):
            sock.settimeout(0)
            return Listener(sock, sock.type)
    except OSError:
        pass
    sock.close()
    return None


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end, as the kernel noted when it connected.

    Raises
    ------
    OSError
        The connection is broken.
    """
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)
