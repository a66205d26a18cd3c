"""What a systemd unit declares of its service's privileges: read from the unit's own files, as systemd would.

Only what can be judged is kept: the most capabilities that its processes may have, and which namespaces are to be its
own. A service manager's memory is not asked: it would take D-Bus, and root for transient properties.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mlsecd.records import Declared

__all__ = ["PLACES", "declared"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# After systemd.unit(5), the strongest first. Generators make units as well, of fstab and SysV scripts.
PLACES: Final = (
    "/run/systemd/transient",
    "/etc/systemd/system",
    "/run/systemd/system",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
)
_NAME: Final = re.compile(r"[A-Za-z0-9:_.@\\-]{1,255}\.service")
_MAX_BYTES: Final = 1 << 18
_MAX_DROP_INS: Final = 64
_CACHED: Final = 256
_NO: Final = frozenset(("0", "no", "n", "false", "f", "off", ""))
# By number, include/uapi/linux/capability.h; a later one is not known here, and so not judged.
_CAPABILITIES: Final = _words(
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE"
    " NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN"
    " SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE"
    " MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
_ALL: Final = (1 << len(_CAPABILITIES)) - 1
_BITS: Final = {f"CAP_{name}": 1 << bit for bit, name in enumerate(_CAPABILITIES)}
# Each of these alone gives a service a mount namespace of its own (systemd.exec(5)).
_MOUNTS: Final = _words(
    "PrivateTmp PrivateDevices PrivateMounts ProtectKernelTunables ProtectKernelModules ProtectKernelLogs"
    " ProtectControlGroups ProtectHome ProtectSystem"
)
_PATHS: Final = _words(
    "RootDirectory RootImage ReadOnlyPaths ReadWritePaths InaccessiblePaths BindPaths BindReadOnlyPaths"
    " TemporaryFileSystem MountImages ExtensionImages ExtensionDirectories"
)


def declared(unit: str | None, places: Iterable[str] = PLACES) -> Declared | None:
    """What the files of this unit say; None where there is no such unit, or its files may not be read.

    A unit of a user's own manager (``user@1000.service/...``) declares nothing that would bind: None.

    Parameters
    ----------
    unit
        As the cgroup names it.
    """
    if unit is None or not _NAME.fullmatch(unit):
        return None
    roots = tuple(places)
    stamps = tuple(_stamp(f"{root}/{name}") for root in roots for name in _drop_in_dirs(unit))
    fragment = _fragment(unit, roots)
    key = (unit, fragment, _stamp(fragment) if fragment else None, stamps)
    if key not in _known:
        if len(_known) >= _CACHED:
            del _known[next(iter(_known))]
        _known[key] = _read(unit, fragment, roots) if fragment else None
    return _known[key]


_known: dict[tuple[object, ...], Declared | None] = {}


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - hot
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _template(unit: str) -> str | None:
    name, at, _ = unit.partition("@")
    return f"{name}@.service" if at else None


def _fragment(unit: str, roots: tuple[str, ...]) -> str | None:
    for name in (unit, _template(unit)):
        for root in roots if name else ():
            path = f"{root}/{name}"
            if os.path.exists(path):  # noqa: PTH110 - hot
                return path
    return None


def _drop_in_dirs(unit: str) -> list[str]:
    """The strongest first: of the unit, of its template, of its prefixes (foo-.service.d), of all services."""
    stem = unit.removesuffix(".service")
    names = [unit, *([template] if (template := _template(unit)) else [])]
    parts = stem.split("-")
    names += [f"{'-'.join(parts[:count])}-.service" for count in range(len(parts) - 1, 0, -1)]
    return [f"{name}.d" for name in (*names, "service")]


def _drop_ins(unit: str, roots: tuple[str, ...]) -> list[str]:
    """Drop-ins in the order in which they apply: by file name; of one name the strongest place and directory wins."""
    found: dict[str, str] = {}
    for directory in _drop_in_dirs(unit):
        for root in roots:
            try:
                names = os.listdir(f"{root}/{directory}")  # noqa: PTH208 - hot
            except OSError:
                continue
            for name in names:
                if name.endswith(".conf"):
                    found.setdefault(name, f"{root}/{directory}/{name}")
    return [found[name] for name in sorted(found)[:_MAX_DROP_INS]]


def _read(unit: str, fragment: str, roots: tuple[str, ...]) -> Declared | None:
    lines: list[tuple[str, str]] = []
    try:
        for path in (fragment, *_drop_ins(unit, roots)):
            lines += _service(Path(path))
    except OSError:
        return None  # half of it would be a lie
    last = dict(lines)
    return Declared(
        file=fragment, capabilities=_capabilities(lines, last), private=tuple(sorted(_private(last))), odd=_odd(lines)
    )


def _service(path: Path) -> list[tuple[str, str]]:
    """Assignments of the [Service] section, and whose namespaces [Unit] joins, in order; continued lines joined."""
    with path.open("rb") as file:
        text = file.read(_MAX_BYTES).decode("utf-8", "replace")
    found, section = [], ""
    for line in re.sub(r"\\\n(?:[ \t]*[#;][^\n]*\n)*", " ", text).split("\n"):
        stripped = line.strip()
        if stripped.startswith("[") and stripped.endswith("]"):
            section = stripped
        elif stripped and stripped[0] not in "#;":
            key, equals, value = map(str.strip, stripped.partition("="))
            if equals and (section == "[Service]" or (section == "[Unit]" and key == "JoinsNamespaceOf")):
                found.append((key, value))
    return found


def _on(value: str | None) -> bool:
    return value is not None and value.lower() not in _NO


def _set(lines: list[tuple[str, str]], key: str, start: int) -> int:
    """A capability set: lines add up, ``~`` takes away, an empty one begins anew; ``start`` where no line speaks."""
    bits: int | None = None
    for name, value in lines:
        if name != key:
            continue
        named = 0
        for word in value.lstrip("~").split():
            named |= _BITS.get(word.upper(), 0)
        if value.startswith("~"):
            bits = (_ALL if bits is None else bits) & ~named
        else:
            bits = 0 if not value else (bits or 0) | named
    return start if bits is None else bits


def _capabilities(lines: list[tuple[str, str]], last: dict[str, str]) -> int:
    """The most that its processes may hold: of root all that are not bounded away, of others the ambient ones."""
    bounded = _set(lines, "CapabilityBoundingSet", _ALL)
    ambient = _set(lines, "AmbientCapabilities", 0)
    user = last.get("User", "")
    root = user in {"", "root", "0"} and not _on(last.get("DynamicUser"))
    return bounded if root else bounded & ambient


def _private(last: dict[str, str]) -> set[str]:
    """Namespaces that are to be its own: mnt, net, pid, user."""
    found = set()
    if any(_on(last.get(key)) for key in _MOUNTS) or any(last.get(key) for key in _PATHS):
        found.add("mnt")
    if _on(last.get("DynamicUser")):  # it implies ProtectSystem= and PrivateTmp=
        found.add("mnt")
    if _on(last.get("PrivateNetwork")) or last.get("NetworkNamespacePath"):
        found.add("net")
    if _on(last.get("PrivateUsers")):
        found.add("user")
    if _on(last.get("PrivatePIDs")):
        found.add("pid")
    return found


def _odd(lines: list[tuple[str, str]]) -> bool:
    """Whether a line starts with privileges that the rest does not tell: ``+``, ``!``, or another unit's namespaces."""
    for key, value in lines:
        if key.startswith("Exec") and any(mark in "+!" for mark in value[: len(value) - len(value.lstrip("@-:+!|"))]):
            return True
        if key in {"JoinsNamespaceOf", "Delegate", "PAMName"} and _on(value):
            return True
    return False
