"""What flows through the house: request batches, samples, and findings. numpy and the standard library only.

Requests come in columns (:class:`RequestBatch`), because there are many; everything else comes as one
small frozen object a record, because there are few.
"""

from mlsecd.records.columns import F8, I1, I4, I8, Column, Field, Ragged, Text, Texts, rows_of
from mlsecd.records.finding import Finding, Severity, Status
from mlsecd.records.gpu import GpuJob, GpuProcess, GpuSample, XidEvent
from mlsecd.records.host import (
    Declared,
    Depth,
    FileSample,
    FileUse,
    Process,
    ProcessTable,
    ServerSample,
    SocketSample,
    SourceStatus,
    Traffic,
    WatchedFile,
)
from mlsecd.records.kinds import MERGE_ORDER, Kind
from mlsecd.records.requests import FIELDS, RequestBatch

__all__ = [
    "F8",
    "FIELDS",
    "I1",
    "I4",
    "I8",
    "MERGE_ORDER",
    "Column",
    "Declared",
    "Depth",
    "Field",
    "FileSample",
    "FileUse",
    "Finding",
    "GpuJob",
    "GpuProcess",
    "GpuSample",
    "Kind",
    "Process",
    "ProcessTable",
    "Ragged",
    "Record",
    "Records",
    "RequestBatch",
    "ServerSample",
    "Severity",
    "SocketSample",
    "SourceStatus",
    "Status",
    "Text",
    "Texts",
    "Traffic",
    "WatchedFile",
    "XidEvent",
    "rows_of",
]

Record = GpuSample | ProcessTable | FileSample | SocketSample | ServerSample | SourceStatus
Records = RequestBatch | Record
