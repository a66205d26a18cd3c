"""How a GPU should be set up: what a change means, and what is required."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from mlsecd.records import Severity

__all__ = ["Require", "grave"]

_Text = Annotated[str, Meta(min_length=1, max_length=128)]
_H, _M, _L = Severity.HIGH, Severity.MEDIUM, Severity.LOW
# By field: what a change is worth by itself; and pairs (before, after) that are worth more or less.
_CHANGES: Final[dict[str, Severity]] = {
    "serial": _H,
    "vbios_version": _H,
    "inforom_version": _H,
    "confidential_compute": _H,
    "confidential_compute_devtools": _H,
    "confidential_compute_environment": _H,
    "gsp_firmware_version": _L,
    "driver_version": _L,
    "cuda_driver_version": _L,
    "container_toolkit_version": _L,
    "pci_bus_id": _M,
    "ecc_mode": _L,
    "ecc_mode_pending": _L,
    "mig_mode": _L,
    "mig_mode_pending": _L,
    "mig_devices": _L,
    "compute_mode": _L,
    "persistence_mode": _L,
    "power_limit_watts": _L,
}
_WORSE: Final[dict[tuple[str, str], Severity]] = {  # by field and its new value
    ("ecc_mode", "disabled"): _H,
    ("ecc_mode_pending", "disabled"): _H,
    ("mig_mode", "disabled"): _M,
    ("compute_mode", "default"): _M,
}


class Require(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A setting that must be as stated."""

    field: Annotated[
        _Text, Meta(description="a posture field: ecc_mode, mig_mode, compute_mode, persistence_mode, ...")
    ]
    value: Annotated[_Text, Meta(description="what it must be")]


def grave(field: str, after: str) -> Severity | None:
    """How loudly a change of this field is told; None: it is no matter of security."""
    return _WORSE.get((field, after), _CHANGES.get(field))
