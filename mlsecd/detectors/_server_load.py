"""What a server's own metrics say of when it was serving, in the form in which requests say it."""

from __future__ import annotations

import numpy as np

from mlsecd.records import Column, RequestBatch, ServerSample, Text

__all__ = ["as_requests"]


def as_requests(sample: ServerSample) -> RequestBatch:
    """One row that covers the time since the last scrape, where the server had anything to do in it; else none.

    How many requests there were is not said: a row here explains load and counts as one.
    """
    work = (sample.running, sample.waiting, sample.requests, sample.output_tokens, sample.input_tokens)
    if sample.interval_s is None or not any(work):
        return RequestBatch({"ts": np.zeros(0)})
    columns: dict[str, Column] = {
        "ts": np.array([sample.ts - sample.interval_s]),
        "duration_s": np.array([sample.interval_s]),
        "synthetic": np.array([int(sample.synthetic)], np.int8),
    }
    if sample.host:
        columns["host"] = Text(np.zeros(1, np.int32), (sample.host,))
    return RequestBatch(columns)
