"""What a server's unit files declare of its privileges, against what it has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mlsecd.detectors._behaviour import risky_capabilities
from mlsecd.detectors._gpu_processes import printable
from mlsecd.records import Depth, Severity

__all__ = ["undeclared"]

_JUDGED: Final = ("net", "pid", "user")  # a mount namespace of its own is harmless, and comes of many settings


def undeclared(depth: Depth) -> Iterator[tuple[str, Severity, str]]:
    """Each difference as its kind, severity and words; none where the files, or the process, cannot be read."""
    unit, shared = depth.declared, depth.host_namespaces
    if unit is None or unit.odd or shared is None:
        return
    where = f"{printable(unit.file)} (or it was changed, and the service not restarted)"
    if depth.capabilities is not None and "user" in shared:  # those of another user namespace do not reach the host
        more = risky_capabilities(depth.capabilities & ~unit.capabilities)
        if more:
            yield (
                "undeclared capabilities",
                Severity.MEDIUM,
                f"holds {', '.join(more)}, which is not declared in {where}",
            )
    missing = sorted(set(unit.private) & set(shared))
    if missing:
        text = f"runs in the host's own {', '.join(missing)} namespace, and should have one of its own by {where}"
        yield "undeclared host namespace", Severity.MEDIUM, text
    own = [name for name in _JUDGED if name not in shared and name not in unit.private]
    if own:
        text = f"runs in another {', '.join(own)} namespace than the host's, which is not declared in {where}"
        yield "undeclared namespace", Severity.LOW, text
