"""sd_notify: one datagram to systemd. The protocol is ten lines; a library would be more to trust."""

from __future__ import annotations

import os
import socket
import time

__all__ = ["Notifier"]


class Notifier:
    """Tells systemd how the daemon is; silent where no one asked (no ``NOTIFY_SOCKET``)."""

    def __init__(self, environ: dict[str, str] | None = None) -> None:
        env = dict(os.environ) if environ is None else environ
        address = env.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        usec = env.get("WATCHDOG_USEC", "")
        ours = env.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_seconds = int(usec) / 1e6 if usec.isdigit() and ours else None

    def send(self, *lines: str) -> None:
        """Send state lines, ``READY=1`` say. A manager that does not listen is no reason to fail."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(0)
                sock.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            return

    def ready(self, status: str) -> None:
        """The daemon serves."""
        self.send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """The configuration is read again; ``ready`` follows."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The daemon drains."""
        self.send("STOPPING=1", "STATUS=draining")

    def alive(self, status: str) -> None:
        """A beat of the main loop itself, so that a stuck loop is noticed."""
        self.send("WATCHDOG=1", f"STATUS={status}")
