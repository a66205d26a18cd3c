"""What a unit allows, without systemd as the first process: read from the unit, put on, and then run a command.

``python tests/sandbox.py UNIT... -- COMMAND`` narrows itself as systemd would and becomes the command. Done for real
are system calls and address families (seccomp), executable memory, capabilities, ``NoNewPrivileges=``, ``UMask=`` and
limits. Mounts, devices and control groups are not: they need the first process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["Unit", "command", "prefix"]

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # seccomp.h, SCMP_ACT_*
_COMPARE_EQUAL = 4  # SCMP_CMP_EQ
_SET_NO_NEW_PRIVS, _SET_MDWE = 38, 65  # linux/prctl.h
_FAMILIES = 64  # more than any kernel has


class Unit:
    """A unit file and its drop-ins, as systemd reads them: lists grow, an empty value clears them."""

    def __init__(self, *files: Path) -> None:
        self.files = files
        self.values: dict[str, list[str]] = defaultdict(list)
        for file in files:
            for line in file.read_text("utf-8").replace("\\\n", " ").splitlines():
                key, equals, value = line.strip().partition("=")
                if not equals or key.startswith(("#", ";", "[")):
                    continue
                if value.strip():
                    self.values[key].append(value.strip())
                else:
                    self.values[key].clear()

    def all(self, key: str) -> list[str]:
        """Every value of a key."""
        return list(self.values[key])

    def last(self, key: str) -> str:
        """The value in force of a key that holds one; "" for none."""
        return self.values[key][-1] if self.values[key] else ""

    def words(self, key: str) -> set[str]:
        """The words of a list."""
        return {word for value in self.values[key] for word in value.split()}

    def calls(self, sets: dict[str, set[str]]) -> set[str]:
        """The system calls that its filter lets through, by name."""
        allowed = set(sets["@default"])
        for value in self.values["SystemCallFilter"]:
            names = _expand(value.removeprefix("~").split(), sets)
            allowed = allowed - names if value.startswith("~") else allowed | names
        return allowed


def _expand(words: Iterable[str], sets: dict[str, set[str]]) -> set[str]:
    return {name for word in words for name in (sets[word] if word.startswith("@") else {word})}


def call_sets() -> dict[str, set[str]]:
    """systemd's own groups of system calls, resolved to names."""
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager"], capture_output=True, text=True, check=True
    ).stdout
    raw: dict[str, list[str]] = {}
    for line in re.sub(r"\x1b\[[0-9;]*m", "", listed).splitlines():
        if line.startswith("@"):
            members = raw.setdefault(line.strip(), [])
        elif line.startswith("    ") and not line.strip().startswith("#"):
            members.append(line.strip())

    def names(group: str) -> set[str]:
        return {name for word in raw[group] for name in (names(word) if word.startswith("@") else {word})}

    return {group: names(group) for group in raw}


def prefix(unit: Unit) -> list[str]:
    """What to put before a command so that it has the unit's capabilities and no others."""
    kept = [name.removeprefix("CAP_").lower() for name in sorted(unit.words("CapabilityBoundingSet"))]
    ambient = [name.removeprefix("CAP_").lower() for name in sorted(unit.words("AmbientCapabilities"))]
    held = ",".join(["-all", *(f"+{name}" for name in ambient)])
    # systemd keeps the inheritable set equal to the ambient one.
    return [
        "setpriv",
        f"--bounding-set={','.join(['-all', *(f'+{name}' for name in kept)])}",
        f"--inh-caps={held}",
        f"--ambient-caps={held}",
    ]


def command(unit: Unit, wanted: Sequence[str]) -> list[str]:
    """``wanted`` within the unit."""
    files = [str(file) for file in unit.files]
    return [*prefix(unit), sys.executable, str(Path(__file__).resolve()), *files, "--", *wanted]


class _Comparison(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


class _Seccomp:
    """One filter of libseccomp's."""

    def __init__(self, otherwise: int) -> None:
        self._lib = ctypes.CDLL("libseccomp.so.2")
        self._lib.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._lib.seccomp_init(ctypes.c_uint32(otherwise)))
        self._otherwise = otherwise

    def rule(self, action: int, name: str, comparisons: Sequence[_Comparison] = ()) -> None:
        number = self._lib.seccomp_syscall_resolve_name(name.encode())
        if number < 0 or action == self._otherwise:
            return  # another architecture's, or what happens anyway
        array = (_Comparison * len(comparisons))(*comparisons)
        _checked(self._lib.seccomp_rule_add_array(self._context, ctypes.c_uint32(action), number, len(array), array))

    def load(self) -> None:
        _checked(self._lib.seccomp_load(self._context))


def _checked(code: int) -> None:
    if code < 0:
        raise OSError(-code, os.strerror(-code))


def _confine(unit: Unit) -> None:
    """Put on what the unit says; in systemd's order, the filters last."""
    sets = call_sets()
    libc = ctypes.CDLL(None, use_errno=True)
    os.umask(int(unit.last("UMask"), 8))
    files = int(unit.last("LimitNOFILE"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if unit.last("NoNewPrivileges") == "yes" and libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    if unit.last("MemoryDenyWriteExecute") == "yes" and libc.prctl(_SET_MDWE, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel cannot deny executable memory")
    families = _Seccomp(_ALLOW)
    allowed = {int(getattr(socket, name)) for name in unit.words("RestrictAddressFamilies")}
    for family in set(range(_FAMILIES)) - allowed:
        families.rule(_ERRNO | errno.EAFNOSUPPORT, "socket", [_Comparison(0, _COMPARE_EQUAL, family, 0)])
    # As systemd does it: a call that it does not know does not exist, so that the C library can do without.
    calls = _Seccomp(_ERRNO | errno.ENOSYS)
    passed = unit.calls(sets)
    refusal = _ERRNO | getattr(errno, unit.last("SystemCallErrorNumber"))
    for name in sorted(sets["@known"] | passed):
        calls.rule(_ALLOW if name in passed else refusal, name)
    families.load()
    calls.load()


def main(argv: Sequence[str]) -> None:
    """Narrow this process and become the command."""
    cut = argv.index("--")
    _confine(Unit(*map(Path, argv[:cut])))
    os.execvp(argv[cut + 1], argv[cut + 1 :])


if __name__ == "__main__":
    main(sys.argv[1:])
