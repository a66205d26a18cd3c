"""What an inference server does not do: start shells and compilers, load code from /tmp, be traced."""

from __future__ import annotations

from typing import Final

from mlsecd.detectors._allow import is_deleted, is_memfd, path_of
from mlsecd.records import Process

__all__ = ["CAPABILITIES", "odd_child", "risky_capabilities"]

_SHELLS: Final = frozenset({"sh", "bash", "dash", "zsh", "ksh", "fish", "ash", "busybox", "pwsh", "tcsh", "csh"})
_COMPILERS: Final = frozenset(
    {"gcc", "g++", "cc", "c++", "clang", "clang++", "cc1", "cc1plus", "ld", "as", "tcc", "rustc", "go", "make", "nvcc"}
)
_FETCHERS: Final = frozenset(
    {"curl", "wget", "nc", "ncat", "netcat", "socat", "ssh", "scp", "sftp", "rsync", "ftp", "tftp", "telnet", "rclone"}
)
# By bit. Not listed are those that services keep for good reasons (CHOWN, SETUID, NET_BIND_SERVICE, IPC_LOCK, ...).
CAPABILITIES: Final = {
    2: "DAC_READ_SEARCH",
    12: "NET_ADMIN",
    16: "SYS_MODULE",
    17: "SYS_RAWIO",
    19: "SYS_PTRACE",
    21: "SYS_ADMIN",
    38: "PERFMON",
    39: "BPF",
}


def odd_child(process: Process) -> str | None:
    """What a server's child is that it should not be: shell, compiler, fetcher, memory, deleted, dropped; or None."""
    exe = process.exe
    if exe is None:
        return None
    if is_memfd(exe):
        return "memory"
    name = path_of(exe).rpartition("/")[2]
    base = name.rstrip("0123456789.-")
    for kind, names in (("shell", _SHELLS), ("compiler", _COMPILERS), ("fetcher", _FETCHERS)):
        # Debian's gcc is x86_64-linux-gnu-gcc-12
        if {name, base, base.rpartition("-")[2]} & names:
            return kind
    if is_deleted(exe):
        return "deleted"
    return "dropped" if exe.startswith(("/tmp/", "/var/tmp/", "/dev/shm/")) else None  # noqa: S108 - looked for


def risky_capabilities(bits: int) -> list[str]:
    """The names of those that let a process out of its bounds."""
    return [name for bit, name in CAPABILITIES.items() if bits >> bit & 1]
