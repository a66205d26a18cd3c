"""Versions and shared memory of model servers, from the files and mappings of real processes."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlsecd.sources import software as module
from mlsecd.sources.depth import holding, look
from mlsecd.sources.software import TRITON_REGION, regions, software

MAPPED = """
import mmap, sys
held = []
for path in sys.argv[1:]:
    with open(path, "r+b") as file:
        held.append(mmap.mmap(file.fileno(), 0))
print("ready", flush=True)
sys.stdin.read()
"""


def site(root: Path, *packages: str) -> Path:
    made = root / "lib" / "python3.11" / "site-packages"
    for package in packages:
        (made / f"{package}.dist-info").mkdir(parents=True, exist_ok=True)
    return made


def line(path: Path | str) -> bytes:
    return f"7f00-7f01 r-xp 00000000 fe:00 1 {path}\n".encode()


def test_packages_are_read_where_libraries_are_mapped_from(tmp_path: Path) -> None:
    made = site(tmp_path, "vllm-0.8.5", "ray-2.9.0", "numpy-2.0.0", "vllm_flash-1.0")
    maps = line(made / "vllm" / "_C.abi3.so") + line("/usr/lib/libc.so.6")
    base = f"/proc/{os.getpid()}"
    assert software(base, maps, b"") == ("ray 2.9.0", "vllm 0.8.5")
    site(tmp_path, "mlflow-3.1.0")
    assert "mlflow 3.1.0" in software(base, maps, b""), "an upgrade is seen"
    assert software(base, line(tmp_path / "gone" / "site-packages" / "x.so"), b"") == ()


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        (b"A=1\0NVIDIA_TRITON_SERVER_VERSION=25.02\0TRITON_SERVER_VERSION=2.55.0\0", ("triton 25.02",)),
        (
            b"TRITON_SERVER_VERSION=24.05\0NVIDIA_TRITON_SERVER_VERSION=2.46.0\0",
            ("triton 24.05",),
        ),  # the other way round
        (b"TRITON_SERVER_VERSION=2.55.0\0", ()),  # the server's own count tells no release
        (b"NVIDIA_TRITON_SERVER_VERSION=nvcr.io/nvidia/tritonserver:24.12-py3\0", ()),
        (b"NVIDIA_TRITON_SERVER_VERSION=25.02; rm -rf /\0", ()),
        (b"XNVIDIA_TRITON_SERVER_VERSION=25.02\0", ()),
    ],
)
def test_tritons_release_is_its_containers_variable(environ: bytes, found: tuple[str, ...]) -> None:
    assert software("/proc/self", b"", environ) == found


def test_listings_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CACHED", 2)
    monkeypatch.setattr(module, "_known", {})  # what other tests listed was held to another bound
    for one in range(5):
        made = site(tmp_path / str(one), f"vllm-0.{one}")
        assert software("/proc/self", line(made / "x.so"), b"") == (f"vllm 0.{one}",)
    assert len(module._known) <= 2
    for odd in (b"1 " + b" /" * (1 << 21), b"/site-packages/" * 100_000, b"x\0y", b"/site-packages/x.so\n"):
        assert software("/proc/self", odd, b"") == (), "a path may be made up to cost time"
    many = b"".join(line(f"/nowhere/{one}/site-packages/x.so") for one in range(10_000))
    assert software("/proc/self", many, b"") == ()


@pytest.fixture
def region() -> Iterator[str]:
    path = f"{TRITON_REGION}mlsecd_test_{os.getpid()}"
    with Path(path).open("wb") as file:
        file.truncate(mmap.PAGESIZE)
    yield path
    Path(path).unlink()


def test_a_real_processs_regions_environment_and_packages(region: str, tmp_path: Path) -> None:
    made = site(tmp_path, "vllm-0.8.5")
    (made / "x.so").write_bytes(bytes(mmap.PAGESIZE))
    Path(region).chmod(0o666)
    environ = {"NVIDIA_TRITON_SERVER_VERSION": "25.02", "SECRET": "hunter2"}
    one = subprocess.Popen(
        [sys.executable, "-c", MAPPED, region, str(made / "x.so")],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert one.stdout is not None
        assert one.stdout.readline() == b"ready\n"
        depth = look(f"/proc/{one.pid}", holding(f"/proc/{one.pid}", "/dev/nvidia"), digest=False)
        assert depth.shared_memory == (f"{region} 0666",)
        assert depth.software == ("triton 25.02", "vllm 0.8.5")
        assert "hunter2" not in repr(depth)
        with contextlib.suppress(OSError):  # pid 1 is not for everybody to look into
            shares = Path("/proc/1/ns/net").readlink() == Path("/proc/self/ns/net").readlink()
            assert depth.host_namespaces is not None
            assert ("net" in depth.host_namespaces) == shares
    finally:
        one.communicate()
    end = time.monotonic() + 10
    while Path(f"/proc/{one.pid}").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert regions(f"/proc/{one.pid}", line(region)) == (f"{region} ?",), "it is gone: its mode cannot be told"
