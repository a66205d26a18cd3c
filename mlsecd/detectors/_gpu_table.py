"""What detectors of one GPU at a time share: a bounded table of states by GPU, kept over a restart."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Final, Generic, TypeVar

from mlsecd.detectors._gpu_processes import as_state, gpu_key
from mlsecd.detectors.base import Detector, DetectorState, Section, Standing
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, GpuSample, Kind, Records
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.packing import pack, unpack

__all__ = ["GpuTable"]

_GPUS_MAX: Final = 256

S = TypeVar("S")


class GpuTable(Detector, Generic[S]):
    """A detector whose whole state is one ``State`` a GPU, and host, and real or synthetic.

    ``State`` is a dataclass that can be made without arguments; :meth:`sample` folds every sample into its GPU's.
    """

    consumes = frozenset({Kind.GPU})
    key = "gpu"
    State: ClassVar[type[Any]]

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._gpus: Keyed[S] = Keyed(_GPUS_MAX, lambda _: self.State())

    def observe(self, records: Records) -> list[Finding]:
        """Fold one GPU sample."""
        if not isinstance(records, GpuSample):
            return []
        gpu = self._gpus.touch(gpu_key(records.host, records.gpu, synthetic=records.synthetic), records.ts)
        return [] if gpu is None else self.sample(gpu, records)

    @abstractmethod
    def sample(self, gpu: S, sample: GpuSample) -> list[Finding]:
        """Fold a sample into its GPU's state."""

    def standing(self) -> Standing:
        """Blind without a sample; else as :meth:`judge` says."""
        gpus = [gpu for _, gpu in self._gpus.items()]
        gauges = {"gpus": float(len(gpus)), "refused": float(self._gpus.refused)}
        if not gpus:
            return Standing(DetectorState.STALE, "blind: no GPU sample yet", gauges)
        return self.judge(gpus, gauges)

    def judge(self, gpus: list[S], gauges: dict[str, float]) -> Standing:  # noqa: ARG002
        """What can be done with these GPUs: armed, where a detector does not know better."""
        return Standing(DetectorState.ARMED, "", gauges)

    def snapshot(self) -> bytes:
        """Every GPU's state."""
        return pack(self.version, self._gpus.dump())

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state."""
        self._gpus.load(as_state(unpack(self.version, blob), list[tuple[str, int, self.State]]))  # type: ignore[name-defined]
