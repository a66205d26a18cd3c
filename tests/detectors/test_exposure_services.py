from __future__ import annotations

from typing import Any

import pytest
from gpu_drive import drive, gpu, process, seconds, table
from hypothesis import given
from hypothesis import strategies as st
from support import Case

from mlsecd import kernels
from mlsecd.detectors._allow import Allow
from mlsecd.detectors._floors import Floor
from mlsecd.detectors._services import expositions, is_metadata, open_listeners
from mlsecd.detectors.base import DetectorState
from mlsecd.detectors.exposure_services import DETECTOR, ExposureServices, Listen, Params
from mlsecd.records import Depth, Process, Records, Severity, SocketSample, Traffic

ANY, LOCAL = "tcp:0.0.0.0:{}", "tcp:127.0.0.1:{}"


def make(**params: Any) -> ExposureServices:
    return DETECTOR(Params(**params), kernels)


def service(pid: int, cmdline: str, *listen: str, exe: str = "/usr/bin/python3.11", **fields: Any) -> Process:
    return process(pid, exe, cmdline=tuple(cmdline.split(" ")), listen=listen, **fields)


def tables(*processes: Process, end: float = 20, **fields: Any) -> list[Records]:
    return [table(ts, *processes, **fields) for ts in seconds(0, end, 5)]


def cases(*processes: Process, **params: Any) -> list[tuple[str, Severity]]:
    return [(one.evidence["product"], one.severity) for one in drive(make(**params), tables(*processes))]


OPEN_NOTEBOOK = service(10, "jupyter-lab --ip=0.0.0.0 --IdentityProvider.token=", ANY.format(8888))


def test_an_open_notebook_pages_and_says_why() -> None:
    (found,) = drive(make(), tables(OPEN_NOTEBOOK))
    assert found.ts == 5.0, "two tables: a server that binds before it sets up is not told of"
    assert (found.severity, found.subject) == (Severity.CRITICAL, "Jupyter /usr/bin/python3.11 uid=997")
    assert found.reason == (
        "Jupyter asks for no token or password, and others can reach it (pid 10, uid 997, /usr/bin/python3.11)"
    )
    assert found.evidence["listen"] == ["tcp:0.0.0.0:8888"]


SAFE, FREE = Depth(unauthenticated=False), Depth(unauthenticated=True)
JUPYTER, H, M, L, C = "Jupyter", Severity.HIGH, Severity.MEDIUM, Severity.LOW, Severity.CRITICAL


@pytest.mark.parametrize(
    ("one", "found"),
    [
        (service(10, "jupyter-lab --ServerApp.token=", LOCAL.format(8888)), [(JUPYTER, M)]),
        (service(10, "jupyter-lab", ANY.format(8888)), [(JUPYTER, L)]),
        (service(10, "jupyter-lab", LOCAL.format(8888)), []),
        (service(10, "jupyter-lab", ANY.format(8888), depth=FREE), [(JUPYTER, C)]),
        (service(10, "jupyter-lab --ServerApp.token=", ANY.format(8888), depth=SAFE), []),  # a password is set
        (service(10, "python3 -m jupyterlab --NotebookApp.token=''", ANY.format(8888)), [(JUPYTER, C)]),
        (
            service(10, "jupyter-lab --IdentityProvider.token=[redacted]", LOCAL.format(1), depth=SAFE),
            [("Jupyter token", L)],
        ),
        (
            service(10, "jupyter-lab --allow-root --ServerApp.allow_origin=*", ANY.format(1), uid=0, depth=SAFE),
            [("Jupyter origin", M), ("Jupyter root", M)],
        ),
        (service(10, "python3 -m ipykernel_launcher -f k.json", LOCAL.format(40001)), []),
        (service(10, "/ray/core/src/ray/raylet/raylet --x", "tcp:10.0.0.5:10001"), [("Ray", H)]),
        (service(10, "python ray/dashboard/dashboard.py --host=0.0.0.0", ANY.format(8265)), [("Ray", H)]),
        (service(10, "python ray/dashboard/dashboard.py", LOCAL.format(8265)), []),
        (service(10, "ollama serve", "tcp:[::]:11434", exe="/usr/bin/ollama"), [("Ollama", H)]),
        (service(10, "java -jar model-server.jar", ANY.format(8081), exe="/usr/bin/java"), [("TorchServe", H)]),
        (service(10, "mlflow server --host 0.0.0.0", ANY.format(5000)), [("MLflow", H)]),
        (service(10, "mlflow server --app-name basic-auth --host 0.0.0.0", ANY.format(5000)), []),
        (
            service(10, "tritonserver --model-control-mode=explicit", ANY.format(8000), exe="/opt/tritonserver"),
            [("Triton with model control", H)],
        ),
        (service(10, "python train.py --mlflow-server x", ANY.format(29500)), []),
        (service(10, "tritonserver --model-repository=/m", ANY.format(8001), exe="/opt/tritonserver"), [("Triton", M)]),
        (service(10, "vllm serve m --port 9000", ANY.format(9000), ANY.format(41237)), [("vLLM", M)]),
        (service(10, "vllm serve m --port 9000", ANY.format(9000)), []),
        (service(10, "nginx -g daemon", ANY.format(443), exe="/usr/sbin/nginx"), []),
        (service(10, "ollama serve", "tcp:[::ffff:127.0.0.1]:11434", exe="/usr/bin/ollama"), []),
    ],
    ids=lambda value: " ".join(value.cmdline) if isinstance(value, Process) else "",
)
def test_products(one: Process, found: list[tuple[str, Severity]]) -> None:
    assert cases(one) == found


def test_a_worker_is_known_by_its_parent() -> None:
    parent = service(10, "mlflow server --host 0.0.0.0")
    worker = service(11, "gunicorn: worker", ANY.format(5000), ppid=10)
    assert cases(parent, worker) == [("MLflow", H)]


def test_a_gpu_process_that_listens_undeclared_is_told_of_whatever_it_is() -> None:
    unknown = service(
        10, "/opt/new-thing", ANY.format(7777), exe="/opt/new-thing", depth=Depth(devices=("/dev/nvidia0",))
    )
    assert cases(unknown) == [("listener", M)]
    assert cases(unknown, declared=(Listen(exe="/opt/*", address="tcp:*:7777"),)) == []
    assert cases(unknown, declared=(Listen(exe="/opt/*", address="tcp:*:80"),)) == [("listener", M)]
    by_nvml = service(10, "/opt/new-thing", ANY.format(7777), exe="/opt/new-thing")
    assert cases(by_nvml) == []
    found = drive(make(), [*tables(by_nvml), *(gpu(ts + 0.1, (10,)) for ts in seconds(0, 20))])
    assert [one.evidence["product"] for one in found] == ["listener"]


def test_a_declaration_covers_a_product_but_never_an_open_notebook() -> None:
    declared = (Listen(address="tcp:**"),)
    assert cases(service(10, "ollama serve", ANY.format(11434), exe="/usr/bin/ollama"), declared=declared) == []
    assert cases(OPEN_NOTEBOOK, declared=declared) == [(JUPYTER, C)]


def test_a_network_namespace_of_its_own_is_no_page() -> None:
    boxed = service(10, "ollama serve", ANY.format(11434), exe="/usr/bin/ollama", depth=Depth(own_network=True))
    (found,) = drive(make(), tables(boxed))
    assert found.severity is Severity.MEDIUM
    assert "only if it is published" in found.reason


def test_the_metadata_endpoint_reached_from_a_gpu_process() -> None:
    def sample(*peers: str, exe: str = "/opt/vllm/bin/python") -> SocketSample:
        return SocketSample(ts=5.0, seconds=10.0, traffic=(Traffic(pid=9, sent_bytes=1, exe=exe, uid=1, peers=peers),))

    (found,) = drive(make(), [sample("10.0.0.1:443", "169.254.169.254:80")])
    assert (found.severity, found.evidence["peers"]) == (Severity.MEDIUM, ["169.254.169.254:80"])
    assert drive(make(), [sample("10.0.0.1:443")]) == []
    assert drive(make(metadata_allow=(Allow(exe="/opt/**"),)), [sample("169.254.169.254:80")]) == []
    assert is_metadata("[fd00:ec2::254]:80")
    assert not is_metadata("nonsense")


def test_standing_says_what_cannot_be_read() -> None:
    detector = make()
    assert detector.standing().state is DetectorState.STALE
    drive(detector, tables(OPEN_NOTEBOOK, blind=("listen: 7 of 9 not permitted (CAP_SYS_PTRACE)",)))
    assert detector.standing().why == "ports of other users' processes cannot be read"


@given(st.text(max_size=300), st.lists(st.text(max_size=60), max_size=5))
def test_any_command_line_and_address_is_survived(cmdline: str, listen: list[str]) -> None:
    one = process(10, "/x", cmdline=(cmdline,), listen=tuple(listen))
    assert isinstance(open_listeners(one), list)
    list(expositions(one, cmdline, jupyter=True))
    list(expositions(one, cmdline, jupyter=False))
    drive(make(), tables(one))


FLOORS = (
    Floor(field="triton", at_least="25.07", why="CVE-2025-23319", source="https://example.org/5687"),
    Floor(field="vllm", at_least="0.11.1", why="CVE-2025-62164"),
    Floor(field="jupyter_server", at_least="2.7.2"),
)
TRITON = "tritonserver --model-repository=/models"
REGION = "/dev/shm/triton_python_backend_shm_region_1"


def triton(*listen: str, software: tuple[str, ...] = (), shared: tuple[str, ...] = ()) -> Process:
    depth = Depth(software=software, shared_memory=shared)
    return service(10, TRITON, *listen, exe="/opt/tritonserver/bin/tritonserver", depth=depth)


@pytest.mark.parametrize(
    ("one", "found"),
    [
        (triton(ANY.format(8000), software=("triton 25.06",)), [("Triton", M), ("Triton version", M)]),
        (triton(ANY.format(8000), software=("triton 25.07",)), [("Triton", M)]),
        (triton(LOCAL.format(8000), software=("triton 25.06",)), [("Triton version", L)]),
        (triton(ANY.format(8000)), [("Triton", M)]),  # unknown is no failure
        (triton(ANY.format(8000), software=("triton 24.01", "triton 26.01")), [("Triton", M)]),  # which of the two?
        (triton(ANY.format(8000), software=("vllm 0.8.5",)), [("Triton", M)]),  # installed, and not what runs
        (
            triton(ANY.format(8000), software=("triton 25.06",), shared=(f"{REGION} 0600",)),
            [("Triton", M), ("Triton version", M), ("Triton shared memory by HTTP", M)],
        ),
        (triton(ANY.format(8000), software=("triton 25.07",), shared=(f"{REGION} 0644",)), [("Triton", M)]),
        (triton(ANY.format(8000), shared=(f"{REGION} ?",)), [("Triton", M), ("Triton shared memory by HTTP", M)]),
        (triton(LOCAL.format(8000), shared=(f"{REGION} 0666",)), [("Triton shared memory", M)]),
        (
            service(
                10,
                "python -m vllm.entrypoints.openai.api_server",
                LOCAL.format(8000),
                depth=Depth(software=("vllm 0.8.5",)),
            ),
            [("vLLM version", L)],
        ),
        (
            service(10, "jupyter-lab", LOCAL.format(8888), depth=Depth(software=("jupyter_server 2.0.0",))),
            [("Jupyter version", L)],
        ),
        (service(10, "nginx", ANY.format(80), depth=Depth(software=("vllm 0.8.5",))), []),
    ],
)
def test_versions_and_shared_memory(one: Process, found: list[tuple[str, Severity]]) -> None:
    assert cases(one, floors=FLOORS) == found


def test_an_old_version_says_where_the_floor_comes_from() -> None:
    old = triton(LOCAL.format(8000), software=("triton 25.06",))
    (found,) = drive(make(floors=FLOORS), tables(old))
    assert found.reason.startswith("Triton 25.06 is older than 25.07, which repairs CVE-2025-23319 (pid 10,")
    assert found.evidence["note"] == "https://example.org/5687"


def test_a_declared_listener_may_be_old_all_the_same_and_checks_are_counted() -> None:
    detector = make(floors=FLOORS, declared=(Listen(address="tcp:*"),))
    old, unknown = triton(ANY.format(8000), software=("triton 25.06",)), service(11, "vllm serve x", ANY.format(8000))
    found = drive(detector, tables(old, unknown))
    assert [one.evidence["product"] for one in found] == ["Triton version"]
    gauges = detector.standing().gauges
    assert (gauges["versions_passed"], gauges["versions_failed"], gauges["versions_unknown"]) == (0.0, 1.0, 1.0)


def test_an_old_version_does_not_hide_an_undeclared_listener() -> None:
    holder = Depth(devices=("/dev/nvidia0",), software=("vllm 0.8.5",))
    api = service(10, "vllm serve x --port 8000", ANY.format(8000), depth=holder)
    assert cases(api, floors=FLOORS) == [("vLLM version", M), ("listener", M)]


def conformance() -> Case:
    records: list[Records] = [
        table(
            5.0 * i,
            OPEN_NOTEBOOK,
            *([service(11, "ollama serve", ANY.format(11434), exe="/o/ollama")] if i > 9 else []),
        )
        for i in range(80)
    ]

    def flood(n: int) -> list[Records]:
        return [
            table(20.0 * i, service(10, "ollama serve", ANY.format(11434), exe=f"/{i}/ollama"), host=f"h{i}")
            for i in range(n)
        ]

    return Case(DETECTOR, Params(), records, Params(), flood)
