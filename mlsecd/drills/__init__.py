"""Synthetic attacks, one for each detector: records that it must find something in.

All of them are marked synthetic, so nothing that comes of them ever pages. A detector that is not here is reported as
untried, never as passed; a test says that none of ours is.
"""

from __future__ import annotations

from typing import Final

from mlsecd.drills.drill import Drill, bundled, fits
from mlsecd.drills.gpus import GPUS
from mlsecd.drills.hosts import HOSTS
from mlsecd.drills.requests import REQUESTS
from mlsecd.drills.servers import SERVERS

__all__ = ["DRILLS", "Drill", "bundled", "fits"]

DRILLS: Final[dict[str, Drill]] = {**REQUESTS, **GPUS, **HOSTS, **SERVERS}
