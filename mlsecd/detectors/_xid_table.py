"""What Xid errors mean, after NVIDIA's catalogue: how loudly to tell, whose fault, and what an attacker may want."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mlsecd.records import Severity

__all__ = ["APPLICATION", "CONSEQUENCE", "Meaning", "meaning"]

_H, _M, _L, _I = Severity.HIGH, Severity.MEDIUM, Severity.LOW, Severity.INFO


@dataclass(frozen=True, slots=True)
class Meaning:
    """One kind of Xid."""

    severity: Severity
    text: str
    note: str = ""  # what it means for security, where it means something


_LINK = Meaning(_M, "NVLink reports an error")
_FLASH = Meaning(_M, "the firmware flash could not be read or written", "look for attempts to change VBIOS or InfoROM")
_TABLE: Final = {
    48: Meaning(_H, "an uncorrectable memory error", "beside a burst of corrected ones: a Rowhammer attack on the GPU"),
    62: Meaning(_H, "the GPU's microcontroller halted"),
    63: Meaning(_L, "a memory row was remapped", "many in a short time: a Rowhammer attack on the GPU"),
    64: Meaning(_H, "a memory row could not be remapped"),
    74: Meaning(_H, "NVLink failed"),
    79: Meaning(_H, "the GPU has fallen off the bus"),
    92: Meaning(_M, "corrected memory errors come at a high rate", "this is what a Rowhammer attack on the GPU shows"),
    94: Meaning(_M, "an uncorrectable memory error, contained to one application"),
    95: Meaning(_H, "an uncorrectable memory error that was not contained"),
    119: Meaning(_H, "the GPU's system processor does not answer"),
    120: Meaning(_H, "the GPU's system processor failed"),
    121: Meaning(_L, "the link to the CPU corrected an error"),
    122: _FLASH,
    123: _FLASH,
    124: _FLASH,
    125: _FLASH,
    137: Meaning(_M, "NVLink refused an access to another GPU's memory", "a program reached for memory not its own"),
    140: Meaning(_H, "an uncorrected memory error"),
    143: Meaning(_H, "the GPU could not be initialised"),
    **dict.fromkeys(range(144, 151), _LINK),
    151: Meaning(_H, "confidential computing could not rotate its keys", "the protected session is in doubt"),
    154: Meaning(_I, "the recovery action changed"),
}
# A program's own fault, and ordinary one at a time: 672 pages in three hours is what comes of paging for 45.
APPLICATION: Final = {
    8: "a channel timed out",
    13: "a kernel read or wrote out of range, or used an illegal instruction",
    25: "a malformed command stream",
    31: "a page fault: memory that is not mapped",
    32: "a corrupted command stream",
    43: "a channel stopped",
    45: "channels were torn down",
    68: "the video decoder met a bad stream",
    69: "an illegal command to the graphics engine",
    109: "a context switch timed out",
}
CONSEQUENCE: Final = 45  # follows any other within moments, and says nothing of its own then
_OTHER: Final = Meaning(_L, "an error that this table does not know")


def meaning(code: int) -> Meaning:
    """What an Xid that is no application's fault means."""
    return _TABLE.get(code, _OTHER)
