"""JSON lines (record format version 1) to records, and back.

Requests come at a rate, so they take a fast path: a *layout*, a msgspec Struct of just the keys that a
stream uses, which refuses any other key. A line that the layout refuses takes the tolerant path, which
knows every field, names what is wrong, and teaches the layout new keys. Both paths use the same types
and limits: a layout changes the speed, never the records.
"""

from .decoder import Decoder
from .encoder import encode

__all__ = ["RECORDED_LINE_BYTES", "Decoder", "encode"]

RECORDED_LINE_BYTES = 32 << 20  # what we wrote ourselves: a table of 32,768 processes is one line
