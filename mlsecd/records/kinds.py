"""What records tell of, and in which order those of one instant are folded."""

from __future__ import annotations

import enum
from typing import Final

__all__ = ["MERGE_ORDER", "Kind"]


class Kind(enum.StrEnum):
    """What a record tells of: the ``kind`` of its JSON line."""

    REQUEST = "request"
    GPU = "gpu"
    PROCESS = "process"
    SERVER = "server"
    FILE = "file"
    SOCKET = "socket"
    SOURCE = "source"


# Records of one instant are folded in this order: what the host looks like comes before what it is
# judged for, and the watermark (``source``) comes last.
MERGE_ORDER: Final = {
    kind: rank
    for rank, kind in enumerate(
        (Kind.PROCESS, Kind.FILE, Kind.SOCKET, Kind.SERVER, Kind.REQUEST, Kind.GPU, Kind.SOURCE)
    )
}
