"""Units and containers from cgroup files as kernels, systemd and container runtimes write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlsecd.sources.cgroups import placement

ID = "3f" * 32
OTHER = "a0" * 32
POD = "pod12345678_1234_1234_1234_123456789abc"

CASES = [
    ("0::/system.slice/vllm.service\n", "vllm.service", None),
    ("0::/system.slice/vllm.service (deleted)\n", "vllm.service", None),
    ("0::/system.slice/system-getty.slice/getty@tty1.service\n", "getty@tty1.service", None),
    ("0::/system.slice/_cgroup.service\n", "cgroup.service", None),
    ("0::/init.scope\n", "init.scope", None),
    ("0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope", None),
    (f"0::/system.slice/docker-{ID}.scope\n", f"docker-{ID}.scope", ID),
    (f"0::/docker/{ID}\n", None, ID),
    (f"0::/machine.slice/libpod-{ID}.scope/container\n", f"libpod-{ID}.scope", ID),
    (f"0::/machine.slice/libpod-conmon-{ID}.scope\n", f"libpod-conmon-{ID}.scope", None),
    (
        f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container\n",
        f"user@1000.service/libpod-{ID}.scope",
        ID,
    ),
    (
        f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-{POD}.slice/cri-containerd-{ID}.scope\n",
        f"cri-containerd-{ID}.scope",
        ID,
    ),
    (f"0::/kubepods/burstable/{POD}/{ID}\n", None, ID),
    (f"0::/kubepods.slice/kubepods-{POD}.slice/crio-{ID}.scope\n", f"crio-{ID}.scope", ID),
    (f"0::/system.slice/containerd.service/kubepods-{POD}.slice:cri-containerd:{ID}\n", "containerd.service", ID),
    (f"0::/docker/{ID}/kubelet/kubepods/{POD}/{OTHER}\n", None, ID),
    (f"12:memory:/docker/{ID}\n2:cpu:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/\n", None, ID),
    (f"12:memory:/docker/{ID}\n1:name=systemd:/system.slice/docker.service\n", "docker.service", ID),
    ("9:name=systemd:/system.slice/ssh.service\n8:pids:/system.slice/ssh.service\n0::/\n", "ssh.service", None),
    ("4:memory:/batch/job7\n0::/\n", None, None),
    ("0::/\n", None, None),
    ("", None, None),
]


@pytest.mark.parametrize(("text", "unit", "container"), CASES)
def test_placement(text: str, unit: str | None, container: str | None) -> None:
    placed = placement(text.encode())
    assert (placed.unit, placed.container) == (unit, container)


def test_the_path_that_names_the_container_is_the_one_that_is_kept() -> None:
    assert placement(f"4:memory:/docker/{ID}\n1:name=systemd:/x\n0::/\n".encode()).cgroup == f"/docker/{ID}"
    assert placement(b"4:memory:/batch/job7\n0::/\n").cgroup == "/batch/job7"
    assert placement(b"0::/\n").cgroup == "/"
    assert placement(b"").cgroup is None


def test_a_user_cannot_pass_for_a_system_unit() -> None:
    """Whoever has a user manager may make groups below it, of any name."""
    forged = "/user.slice/user-1000.slice/user@1000.service/app.slice/vllm.service"
    assert placement(f"0::{forged}\n".encode()).unit == "user@1000.service/vllm.service"
    delegated = "/system.slice/jupyter.service/vllm.service"
    assert placement(f"0::{delegated}\n".encode()).unit == "jupyter.service"


@given(st.binary(max_size=300))
def test_takes_any_bytes(raw: bytes) -> None:
    placement(raw)
    placement(b"0::/" + raw)
