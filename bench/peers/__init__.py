"""Published detectors of model extraction, written plainly, to be judged by the rule that ours are judged by.

Each sees what the records carry, the 32 or so numbers of a query, not the image or text; exact repeats of a body are
kept from all of them, which is to their advantage. HODA is not here: it needs the model's training checkpoints.
"""

from .add import Add
from .base import Account, Peer, Query
from .blacklight import Blacklight
from .calibration import clopper_pearson, threshold
from .prada import Prada
from .seat import Seat
from .stateful_knn import StatefulKnn

__all__ = ["PEERS", "Account", "Peer", "Query", "clopper_pearson", "threshold"]

PEERS: dict[str, type[Peer]] = {
    peer.name: peer for peer in (Prada, StatefulKnn, Blacklight, Seat, Add)
}  # in the order of the table
