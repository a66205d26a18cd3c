"""What unit files declare: real files in directories of the test's own, laid out as systemd's are."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mlsecd.records import Declared
from mlsecd.sources.units import PLACES, declared

SYS_ADMIN, SYS_PTRACE, NET_BIND = 1 << 21, 1 << 19, 1 << 10
ALL = (1 << 41) - 1

Write = Callable[[dict[str, str]], tuple[str, ...]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes files by ``place/name`` and returns the places, strongest first."""

    def make(files: dict[str, str]) -> tuple[str, ...]:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tuple(str(tmp_path / place) for place in ("etc", "run", "lib"))

    return make


def one(write: Write, service: str, unit: str = "vllm.service") -> Declared:
    found = declared(
        unit, write({"lib/vllm.service": f"[Unit]\nDescription=x\n[Service]\n{service}\n[Install]\nUser=no\n"})
    )
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("service", "capabilities"),
    [
        ("", ALL),  # root
        ("User=root", ALL),
        ("User=vllm", 0),
        ("DynamicUser=yes", 0),
        ("User=vllm\nAmbientCapabilities=CAP_SYS_PTRACE", SYS_PTRACE),
        (
            "User=vllm\nAmbientCapabilities=CAP_SYS_PTRACE\nAmbientCapabilities=cap_net_bind_service",
            SYS_PTRACE | NET_BIND,
        ),
        ("User=vllm\nAmbientCapabilities=CAP_SYS_PTRACE\nAmbientCapabilities=", 0),
        (
            "User=vllm\nAmbientCapabilities=CAP_SYS_PTRACE CAP_SYS_ADMIN\nCapabilityBoundingSet=~CAP_SYS_ADMIN",
            SYS_PTRACE,
        ),
        ("CapabilityBoundingSet=CAP_SYS_ADMIN \\\n  CAP_SYS_PTRACE", SYS_ADMIN | SYS_PTRACE),
        ("CapabilityBoundingSet=~CAP_SYS_ADMIN", ALL & ~SYS_ADMIN),
        ("CapabilityBoundingSet=CAP_SYS_ADMIN CAP_SYS_PTRACE\nCapabilityBoundingSet=~CAP_SYS_ADMIN", SYS_PTRACE),
        ("CapabilityBoundingSet=CAP_OF_THE_FUTURE", 0),
        ("# User=vllm\n; User=vllm", ALL),
    ],
)
def test_the_most_capabilities(write: Write, service: str, capabilities: int) -> None:
    assert one(write, service).capabilities == capabilities


@pytest.mark.parametrize(
    ("service", "private"),
    [
        ("", ()),
        ("PrivateTmp=yes", ("mnt",)),
        ("PrivateTmp=no\nProtectSystem=off", ()),
        ("ProtectSystem=strict", ("mnt",)),
        ("ProtectSystem=strict\nProtectSystem=no", ()),
        ("BindReadOnlyPaths=/models", ("mnt",)),
        ("PrivateNetwork=true\nPrivateUsers=self\nPrivatePIDs=yes", ("net", "pid", "user")),
        ("NetworkNamespacePath=/run/netns/a", ("net",)),
        ("DynamicUser=1", ("mnt",)),
    ],
)
def test_namespaces_of_its_own(write: Write, service: str, private: tuple[str, ...]) -> None:
    assert one(write, service).private == private


@pytest.mark.parametrize(
    ("service", "odd"),
    [
        ("ExecStart=/bin/x +y", False),
        ("ExecStart=-/bin/x", False),
        ("ExecStart=+/bin/x", True),
        ("ExecStartPre=-!!/bin/x", True),
        ("Delegate=yes", True),
        ("Delegate=no", False),
    ],
)
def test_units_that_files_do_not_tell_of(write: Write, service: str, odd: bool) -> None:
    assert one(write, service).odd is odd


def test_the_strongest_place_wins_and_drop_ins_apply_by_name(write: Write) -> None:
    lib = {"lib/vllm.service": "[Service]\nUser=a\nAmbientCapabilities=CAP_SYS_ADMIN\n"}
    assert declared("vllm.service", write(lib)) == Declared(
        file=declared("vllm.service", write(lib)).file,  # type: ignore[union-attr]
        capabilities=SYS_ADMIN,
    )
    drop = {
        "lib/vllm.service.d/20.conf": "[Service]\nAmbientCapabilities=\n",
        "run/vllm.service.d/10.conf": "[Service]\nAmbientCapabilities=CAP_SYS_PTRACE\n",
    }
    found = declared("vllm.service", write(drop))
    assert found is not None
    assert found.capabilities == 0, "20.conf comes after 10.conf, wherever they lie"
    masked = declared("vllm.service", write({"etc/vllm.service.d/20.conf": "[Service]\nPrivateTmp=yes\n"}))
    assert masked is not None
    assert (masked.capabilities, masked.private) == (SYS_ADMIN | SYS_PTRACE, ("mnt",)), (
        "of one name the stronger place's"
    )
    whole = declared("vllm.service", write({"etc/vllm.service": "[Service]\nUser=a\n"}))
    assert whole is not None
    assert (whole.capabilities, Path(whole.file).parent.name) == (SYS_PTRACE, "etc")


def test_templates_and_prefixes(write: Write) -> None:
    places = write(
        {
            "lib/vllm@.service": "[Service]\nUser=a\nAmbientCapabilities=CAP_SYS_ADMIN\n",
            "run/vllm@.service.d/a.conf": "[Service]\nPrivateNetwork=yes\n",
            "etc/service.d/all.conf": "[Service]\nPrivateTmp=yes\n",
        }
    )
    found = declared("vllm@llama.service", places)
    assert found is not None
    assert (found.capabilities, found.private) == (SYS_ADMIN, ("mnt", "net"))
    places = write(
        {
            "lib/gpu-a.service": "[Service]\nUser=a\n",
            "etc/gpu-.service.d/x.conf": "[Service]\nPrivateUsers=1\n",
        }
    )
    prefixed = declared("gpu-a.service", places)
    assert prefixed is not None
    assert prefixed.private == ("mnt", "user")


def test_a_change_is_seen_and_what_is_no_unit_declares_nothing(write: Write, tmp_path: Path) -> None:
    places = write({"lib/vllm.service": "[Service]\nUser=a\n"})
    assert declared("vllm.service", places).capabilities == 0  # type: ignore[union-attr]
    write({"etc/vllm.service.d/x.conf": "[Service]\nUser=\n"})
    assert declared("vllm.service", places).capabilities == ALL  # type: ignore[union-attr]
    for name in (None, "", "nothing.service", "../../etc/passwd", "session-1.scope", "user@1000.service/vllm.service"):
        assert declared(name, places) is None
    (tmp_path / "lib" / "broken.service").mkdir()
    assert declared("broken.service", places) is None
    (tmp_path / "lib" / "bytes.service").write_bytes(b"[Service]\nUser=\xff\xfe\n\0=\n[")
    assert declared("bytes.service", places).capabilities == 0  # type: ignore[union-attr]


def test_our_own_unit_is_read_as_it_is_meant(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[2] / "systemd" / "mlsecd.service", tmp_path)
    found = declared("mlsecd.service", (str(tmp_path),))
    assert found is not None
    assert (found.capabilities, found.private, found.odd) == (SYS_PTRACE, ("mnt",), False)


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="needs systemd's own tools")
def test_the_places_are_systemds() -> None:
    shown = subprocess.run(
        ["systemd-analyze", "unit-paths"], capture_output=True, text=True, check=False, timeout=30
    ).stdout.split()
    if not shown:
        pytest.skip("systemd-analyze does not say")
    missing = {
        place for place in shown if place.startswith(("/etc/systemd/system", "/usr/lib", "/usr/local/lib", "/lib"))
    }
    assert {place for place in missing if not place.endswith((".control", ".attached"))} <= set(PLACES)
