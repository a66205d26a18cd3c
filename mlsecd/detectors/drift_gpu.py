"""A GPU that no longer answers its load as it used to: power, clocks, temperature, memory, utilisation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._drift_gpu import COLUMNS, MINUTE, STREAMS, Minute
from mlsecd.detectors._drift_lane import Lane, Recipe
from mlsecd.detectors._serving import FAR_SECONDS, by_host
from mlsecd.detectors.base import Detector, DetectorState, Maturity, Section, Standing
from mlsecd.errors import MALFORMED, StateError
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, GpuSample, Kind, Records, RequestBatch
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "DriftGpu", "Params"]

_DEFAULT_SHARE: Final = 0.25  # false alarms a week, where the configuration hands down none
_HOSTS_MAX: Final = 256
_TICK_SECONDS: Final = 60.0


class Params(base.Params, frozen=True):
    """What is learned, and how sure an alarm must be."""

    false_alarms_per_week: (
        Annotated[float, Meta(gt=0, description="share of the false-alarm budget; default: handed down from [budget]")]
        | None
    ) = None
    expected_gpus: Annotated[int, Meta(ge=1, le=1_024, description="GPUs that the share is divided among")] = 8
    gpus: Annotated[int, Meta(ge=1, le=256, description="GPUs watched at most; the one quiet longest goes")] = 64
    arm_minutes: Annotated[
        int, Meta(ge=60, le=1_440, description="minutes of samples that a reference needs; it grows to 42 times that")
    ] = 480
    repeat_seconds: Annotated[
        float, Meta(ge=60, le=900, description="event time between repeats of a finding that goes on")
    ] = 300.0


@dataclass(slots=True)
class _Gpu:
    """What is held of one GPU: 0.6 MiB while it learns for two weeks, then as much as its reference."""

    lane: Lane
    minute: Minute = field(default_factory=Minute)


class DriftGpu(Detector):
    """A conformal e-detector per number of a GPU, a row a minute, each less what its load explains."""

    name = "drift_gpu"
    consumes = frozenset({Kind.GPU, Kind.REQUEST})
    key = "gpu"
    maturity = Maturity.SANDBOX
    atlas = ("AML.T0034",)
    owasp = ("LLM10:2025",)
    resolve_after_seconds = 7_200.0
    summary = "A GPU draws other power, clocks, memory or time for its load than it used to."
    action = (
        "Look at what changed when it began: a driver, a power limit, cooling, another model or batch size, or a "
        "process that shares the GPU. If it is the new normal, restart without the kept state to learn it."
    )
    blind_spots: ClassVar[tuple[str, ...]] = (
        "What is already wrong while the first hours are learned becomes the reference.",
        "Minutes with more load than was ever seen are not judged; nor is anything shorter than some minutes.",
        "Utilisation is held against requests only where requests are recorded with the GPU's host.",
        "The references are learned from the stream, not from a baseline.",
    )
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        share = params.false_alarms_per_week or _DEFAULT_SHARE
        self._recipe = Recipe.of(
            len(COLUMNS),
            STREAMS,
            params.arm_minutes,
            alarms_per_week=share / params.expected_gpus,
            repeat_seconds=params.repeat_seconds,
        )
        self._gpus = {
            synthetic: Keyed(params.gpus, lambda _: _Gpu(Lane.of(self._recipe)), _TICK_SECONDS)
            for synthetic in (False, True)
        }
        self._requests: dict[tuple[str, bool], dict[int, int]] = {}  # by host, completed by minute: the latest three

    def observe(self, records: Records) -> list[Finding]:
        """Count requests; fold samples, minute by minute."""
        if isinstance(records, RequestBatch):
            self._count(records)
            return []
        if not isinstance(records, GpuSample) or not abs(records.ts) < FAR_SECONDS:
            return []
        gpu = self._gpus[records.synthetic].touch(records.gpu, records.ts)
        if gpu is None:
            return []
        found = []
        number = math.floor(records.ts / MINUTE)
        if number != gpu.minute.number:
            if 0 <= gpu.minute.number < number and any(gpu.minute.counts):
                found = self._close_minute(gpu, records)
            gpu.minute = Minute(number)
        gpu.minute.add(records)
        return found

    def _count(self, batch: RequestBatch) -> None:
        times = batch.completion
        for host, synthetic, rows in by_host(batch):
            if (host, synthetic) not in self._requests and len(self._requests) >= _HOSTS_MAX:
                continue
            held = self._requests.setdefault((host, synthetic), {})
            own = times[rows]
            numbers, counts = np.unique(np.floor(own[np.abs(own) < FAR_SECONDS] / MINUTE), return_counts=True)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                held[int(number)] = held.get(int(number), 0) + count
                for old in [one for one in held if one < int(number) - 2 or one > int(number)]:
                    del held[old]

    def _close_minute(self, gpu: _Gpu, sample: GpuSample) -> list[Finding]:
        """A minute is whole: judge it, and learn from it while the reference grows."""
        number = gpu.minute.number
        hosts = {sample.host, ""}
        requests = sum(self._requests.get((host, sample.synthetic), {}).get(number, 0) for host in hosts)
        if not gpu.lane.take(gpu.minute.row(requests), (number + 1) * MINUTE, self.kernels):
            return []
        return [
            self.finding(
                ts=sample.ts,
                subject_kind="gpu",
                subject=sample.gpu,
                synthetic=sample.synthetic,
                **gpu.lane.verdict(sample.ts)._asdict(),
            )
        ]

    def standing(self) -> Standing:
        """Learning until a GPU has its reference; shifted while any has left it."""
        gpus = [one for _, one in self._gpus[False].items()] or [one for _, one in self._gpus[True].items()]
        armed = [one.lane.watch for one in gpus if one.lane.armed]
        gauges = {
            "gpus": float(len(gpus)),
            "armed_gpus": float(len(armed)),
            "shifted_gpus": float(sum(watch.shifted for watch in armed)),
            "streams": float(sum(len(watch.state) for watch in armed)),
            "refused": float(sum(keyed.refused + keyed.evicted for keyed in self._gpus.values())),
        }
        if gauges["shifted_gpus"]:
            return Standing(DetectorState.SHIFTED, f"{gauges['shifted_gpus']:.0f} GPUs answer otherwise", gauges)
        if armed:
            return Standing(DetectorState.ARMED, "", gauges)
        furthest = max((len(one.lane.times) for one in gpus), default=0)
        return Standing(
            DetectorState.LEARNING, f"{furthest} of {self.params.arm_minutes} minutes of the furthest GPU", gauges
        )

    def snapshot(self) -> bytes:
        """Every GPU's minutes, or reference and streams, and the requests of the last minutes."""
        return pack(
            self.version,
            {
                "requests": [
                    [host, synthetic, list(held.items())] for (host, synthetic), held in self._requests.items()
                ],
                "gpus": [
                    [[key, tick, _dump(gpu)] for key, tick, gpu in self._gpus[synthetic].dump()]
                    for synthetic in (False, True)
                ],
            },
        )

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state."""
        held = unpack(self.version, blob)
        try:
            requests = {
                (str(host), bool(synthetic)): {int(number): int(count) for number, count in counts}
                for host, synthetic, counts in held["requests"]
            }
            gpus = [[(key, tick, _load(self._recipe, state)) for key, tick, state in rows] for rows in held["gpus"]]
            pairs = list(zip(self._gpus.values(), gpus, strict=True))
        except MALFORMED as error:
            raise StateError(f"{self.name}: a snapshot does not fit: {error}") from error
        self._requests = requests
        for keyed, rows in pairs:
            keyed.load(rows[-self.params.gpus :])


def _dump(gpu: _Gpu) -> dict[str, Any]:
    return {**gpu.lane.dump(), "minute": [gpu.minute.number, gpu.minute.sums, gpu.minute.counts]}


def _load(recipe: Recipe, state: dict[str, Any]) -> _Gpu:
    number, sums, counts = state["minute"]
    if len(sums) != len(COLUMNS) or len(counts) != len(COLUMNS):
        raise ValueError("a GPU's minutes are damaged")
    minute = Minute(int(number), [float(one) for one in sums], [int(one) for one in counts])
    return _Gpu(Lane.load(recipe, state), minute)


DETECTOR = DriftGpu
