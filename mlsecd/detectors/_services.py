"""Services of machine-learning hosts that let anybody in: how to know them, and what is wrong with how they run."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mlsecd.records import Process, Severity

__all__ = ["Exposure", "expositions", "is_metadata", "open_listeners", "product_of"]

_C, _H, _M, _L = Severity.CRITICAL, Severity.HIGH, Severity.MEDIUM, Severity.LOW
_METADATA: Final = frozenset(map(ipaddress.ip_address, ("169.254.169.254", "fd00:ec2::254", "100.100.100.200")))
_EMPTY: Final = re.compile(r"--(?:IdentityProvider|ServerApp|NotebookApp)\.token[= ](?:''|\"\"|)(?= |$)")
_GIVEN: Final = re.compile(r"--(?:IdentityProvider|ServerApp|NotebookApp)\.token[= ](?!''|\"\"| |$)")
_CROSS: Final = re.compile(r"--(?:ServerApp|NotebookApp)\.(?:allow_origin[= ]'?\*|disable_check_xsrf[= ]?(?:True)?)")


@dataclass(frozen=True, slots=True)
class Exposure:
    """One thing that is wrong."""

    product: str
    severity: Severity
    text: str
    note: str = ""
    listens: bool = True  # it says where the process listens


@dataclass(frozen=True, slots=True)
class _Product:
    """A product that asks nobody who they are."""

    name: str
    field: str  # as the list of floors calls it
    known: re.Pattern[str]  # over "NAME EXE CMDLINE"
    ports: tuple[int, ...]  # that matter; empty: all
    severity: Severity
    note: str
    unless: re.Pattern[str] | None = None


_PRODUCTS: Final = (
    _Product(
        "Ray",
        "ray",
        re.compile(r"\braylet\b|\bgcs_server\b|ray[/.]dashboard|\bray start\b|ray::"),
        (8265, 10001, 6379),
        _H,
        "ShadowRay, CVE-2023-48022: whoever reaches it runs code; there is no patch, only the network",
    ),
    _Product(
        "Ollama",
        "ollama",
        re.compile(r"\bollama\b.* serve\b|\bollama\b"),
        (11434,),
        _H,
        "it has no authentication: models can be pulled, pushed and deleted",
    ),
    _Product(
        "TorchServe",
        "torchserve",
        re.compile(r"model-server\.jar|org\.pytorch\.serve|\btorchserve\b"),
        (8080, 8081, 8082, 7070, 7071),
        _H,
        "ShellTorch, CVE-2023-43654: the management port loads models, which are code; the project is not maintained",
    ),
    _Product(
        "MLflow",
        "mlflow",
        re.compile(r"(?:^|[/ ])mlflow (?:server|ui)\b|mlflow\.server"),
        (),
        _H,
        "it has no authentication unless it is started with --app-name basic-auth",
        re.compile(r"--app-name[= ]basic-auth"),
    ),
    _Product(
        "Triton with model control",
        "triton",
        re.compile(r"\btritonserver\b.*--model-control-mode[= ](?:explicit|poll)"),
        (8000, 8001),
        _H,
        "whoever reaches it loads models, which may be code",
    ),
    _Product(
        "Triton",
        "triton",
        re.compile(r"\btritonserver\b"),
        (8000, 8001, 8002),
        _M,
        "it has no authentication",
    ),
)
_VLLM: Final = re.compile(r"(?:^|[/ ])vllm serve\b|vllm\.entrypoints|VLLM::")
_PORT: Final = re.compile(r"--port[= ](\d{1,5})(?= |$)")


def _split(address: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int] | None:
    host, _, port = address.partition(":")[2].rpartition(":")
    try:
        found = ipaddress.ip_address(host.strip("[]"))
        mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
        return mapped or found, int(port)
    except ValueError:
        return None


def open_listeners(process: Process) -> list[tuple[str, int]]:
    """TCP sockets that others than this host can reach: address as the table shows it, and port."""
    found = [(one, _split(one)) for one in process.listen if one.startswith("tcp:")]
    return [(one, parts[1]) for one, parts in found if parts is not None and not parts[0].is_loopback]


def is_metadata(peer: str) -> bool:
    """Whether a peer (``address:port``) is a cloud's metadata endpoint, which hands out credentials."""
    parts = _split(f"tcp:{peer}")
    return parts is not None and parts[0] in _METADATA


def expositions(process: Process, cmdline: str, *, jupyter: bool) -> Iterator[Exposure]:
    """What is wrong with a listening process. ``cmdline``: its own, or its parent's where it is a worker."""
    reached = open_listeners(process)
    if jupyter:
        yield from _jupyter(process, cmdline, reached=bool(reached))
        return
    what = f"{process.name or ''} {process.exe or ''} {cmdline}"
    for product in _PRODUCTS:
        if not product.known.search(what) or (product.unless and product.unless.search(what)):
            continue
        wrong = [one for one, port in reached if not product.ports or port in product.ports]
        if wrong:
            yield Exposure(
                product.name, product.severity, f"{product.name} listens on {', '.join(wrong)}", product.note
            )
        return
    if _VLLM.search(what):
        api = _PORT.search(cmdline)
        inner = [one for one, port in reached if port != int(api[1] if api else 8000)]
        if inner:
            note = "sockets between vLLM's own processes take pickles: CVE-2025-30202, CVE-2025-47277, CVE-2025-32444"
            yield Exposure("vLLM", _M, f"vLLM listens on {', '.join(inner)}, which is not its API", note)


def product_of(process: Process, cmdline: str, *, jupyter: bool) -> tuple[str, str] | None:
    """Which known product this is: its name, and what the list of floors calls it."""
    if jupyter:
        return "Jupyter", "jupyter_server"
    what = f"{process.name or ''} {process.exe or ''} {cmdline}"
    for product in _PRODUCTS:
        if product.known.search(what):
            return product.name.partition(" ")[0], product.field
    return ("vLLM", "vllm") if _VLLM.search(what) else None


def _jupyter(process: Process, cmdline: str, *, reached: bool) -> Iterator[Exposure]:
    said = None if process.depth is None else process.depth.unauthenticated
    free = said if said is not None else bool(_EMPTY.search(cmdline)) or None
    where = "others can reach it" if reached else "every local user and program can reach it"
    if free:
        note = "Qubitstrike and others look for these: whoever reaches it runs code as its user"
        yield Exposure("Jupyter", _C if reached else _M, f"Jupyter asks for no token or password, and {where}", note)
    elif reached and free is None:
        yield Exposure("Jupyter", _L, "Jupyter listens for others, and whether it asks for a token is not known")
    if _GIVEN.search(cmdline):
        yield Exposure(
            "Jupyter token", _L, "Jupyter's token stands in its command line, which every local user can read"
        )
    if reached and _CROSS.search(cmdline):
        yield Exposure(
            "Jupyter origin", _M, "Jupyter takes requests from any web page: allow_origin=* or no XSRF check"
        )
    if reached and "--allow-root" in cmdline and process.uid == 0:
        yield Exposure("Jupyter root", _M, "Jupyter runs as root and listens for others")
