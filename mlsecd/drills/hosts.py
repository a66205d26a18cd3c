"""Attacks on the host around the GPUs: what listens, what a server starts, what is read and what leaves."""

from __future__ import annotations

from typing import Any, Final

from mlsecd.drills.drill import Drill, column_batch, program, table
from mlsecd.records import Depth, FileSample, Records, SocketSample, Traffic, WatchedFile

__all__ = ["HOSTS"]

_MODEL: Final = "/models/drill.safetensors"
_STRANGER: Final = "203.0.113.7:443"  # RFC 5737: nobody's


def _open_notebook() -> list[Records]:
    """Jupyter without a token, on all interfaces."""
    words = ("jupyter-lab", "--ip=0.0.0.0", "--IdentityProvider.token=")
    notebook = program(4_242, "/usr/bin/python3", cmdline=words, listen=("tcp:0.0.0.0:8888",))
    return [table(5.0 * i, notebook) for i in range(12)]


def _shell() -> list[Records]:
    """A worker of the inference server starts a shell."""
    spaces = ("mnt:[1]", "net:[2]", "pid:[3]", "user:[4]")
    well = Depth(devices=("/dev/nvidia-uvm",), tracer=0, capabilities=0, namespaces=spaces, preload=(), mappings=())
    server = program(100, "/opt/server/bin/python", unit="server.service", depth=well)
    worker = program(101, "/opt/server/bin/python", ppid=100)
    shell = program(4_242, "/usr/bin/bash", ppid=101, cmdline=("bash", "-i"))
    return [table(5.0 * i, server, worker, *((shell,) if i >= 120 else ())) for i in range(140)]


def _changed_weights() -> list[Records]:
    """The model file's content changes, and its modification time is put back."""
    known: dict[str, Any] = {
        "device": 1,
        "inode": 2,
        "size": 100,
        "mtime_ns": 3,
        "ctime_ns": 4,
        "mode": 0o640,
        "uid": 0,
    }
    digests = ["aa"] * 6 + ["cc"] * 12
    return [
        FileSample(ts=10.0 * i, files=(WatchedFile(path=_MODEL, sampled=digest, **known),), synthetic=True)
        for i, digest in enumerate(digests)
    ]


def _weights_leave() -> list[Records]:
    """A gigabyte a minute to one stranger, beside answers of a few hundred tokens."""
    records: list[Records] = []
    for minute in range(60):
        ts = 60.0 * minute
        gone = Traffic(
            pid=100,
            sent_bytes=10**9,
            exe="/opt/server/bin/python",
            uid=997,
            peers=(_STRANGER,),
            peer_bytes=(10**9,),
        )
        answer = column_batch([ts + 1.0], client="k-drill", output_tokens=200.0)
        records += [answer, SocketSample(ts=ts + 2.0, seconds=60.0, traffic=(gone,), synthetic=True)]
    return records


HOSTS: Final = {
    "exposure_services": Drill("Jupyter listens on all interfaces without a token", _open_notebook),
    "process_inference": Drill("the inference server's worker starts a shell", _shell),
    "integrity_weights": Drill("a model file's content changes", _changed_weights),
    "egress_bytes": Drill("a gigabyte a minute leaves to one stranger", _weights_leave),
}
