"""A /proc tree made of ordinary files, for what the real one cannot be made to show."""

from __future__ import annotations

import shutil
from pathlib import Path


class FakeProc:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir(exist_ok=True)
        self.add(1, name="systemd", exe="/usr/lib/systemd/systemd", cgroup="0::/init.scope\n")

    def add(
        self,
        pid: int,
        *,
        name: str = "server",
        exe: str | None = "/usr/bin/server",
        cmdline: bytes = b"server\0--port\x008000\0",
        uid: int = 0,
        start: int = 1000,
        cgroup: str = "0::/system.slice/server.service\n",
        flags: int = 0x400000,
        ppid: int = 1,
    ) -> Path:
        path = self.root / str(pid)
        path.mkdir(exist_ok=True)
        self.stat(pid, name=name, start=start, flags=flags, ppid=ppid)
        if exe is not None:
            self.link(pid, exe)
        (path / "cmdline").write_bytes(cmdline)
        (path / "status").write_text(f"Name:\tx\nUid:\t7\t{uid}\t8\t9\nGid:\t0\t0\t0\t0\n")
        (path / "cgroup").write_text(cgroup)
        (path / "fd").mkdir(exist_ok=True)
        (path / "ns").mkdir(exist_ok=True)
        net = path / "ns" / "net"
        net.unlink(missing_ok=True)
        net.symlink_to("net:[1]")
        return path

    def link(self, pid: int, exe: str) -> None:
        link = self.root / str(pid) / "exe"
        link.unlink(missing_ok=True)
        link.symlink_to(exe)

    def stat(
        self,
        pid: int,
        *,
        name: str = "server",
        start: int = 1000,
        flags: int = 0x400000,
        ppid: int = 1,
        ticks: int = 250,
        stack: int = 4096,
    ) -> None:
        fields = ["S", ppid, pid, pid, 0, -1, flags, 1, 0, 0, 0, ticks, 50, 0, 0, 20, 0, 1, 0, start, 4096000, 100]
        fields += [2**64 - 1, 1, 2, stack, *[0] * 24]
        line = f"{pid} ({name}) {' '.join(map(str, fields))}\n"
        (self.root / str(pid) / "stat").write_bytes(line.encode("utf-8", "surrogateescape"))

    def socket(self, pid: int, inode: int, descriptor: int = 3) -> None:
        (self.root / str(pid) / "fd" / str(descriptor)).symlink_to(f"socket:[{inode}]")

    def net(self, pid: int, table: str, lines: list[str]) -> None:
        directory = self.root / str(pid) / "net"
        directory.mkdir(exist_ok=True)
        header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        (directory / table).write_text(header + "".join(lines))

    def remove(self, pid: int) -> None:
        shutil.rmtree(self.root / str(pid))


def table_line(address: str, state: str, inode: int) -> str:
    return (
        f"   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 0 100\n"
    )
