"""A subject whose drift is read off rows of its own: a GPU's minutes, a server's scrapes. Learned, then judged."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._drift_curves import Curves, Stream
from mlsecd.detectors._drift_freeze import Settings, freeze_columns
from mlsecd.detectors._drift_plan import Plan
from mlsecd.detectors._drift_verdicts import Verdict, judge
from mlsecd.detectors._drift_watch import Watch
from mlsecd.kernels import Kernels

__all__ = ["Lane", "Recipe"]

_STAGES: Final = (1, 6, 42)  # times arm_rows, at which a reference is made anew: of minutes 8 h, 2 days and 2 weeks


class Recipe(NamedTuple):
    """What all lanes of a detector have in common."""

    plan: Plan
    columns: int
    streams: tuple[Stream, ...]
    arm_rows: int

    @staticmethod
    def of(
        columns: int, streams: tuple[Stream, ...], arm_rows: int, *, alarms_per_week: float, repeat_seconds: float
    ) -> Recipe:
        """A recipe whose lanes have so many alarms a week each."""
        plan = Plan(
            settings=Settings(arm_rows, arm_rows, 0, 0, 0.0, alarms_per_week),
            stages=(),
            whole=0,
            refresh_seconds=0.0,
            client_rows=1,
            repeat_seconds=float(repeat_seconds),
            alarms_per_week=alarms_per_week,
        )
        return Recipe(plan, columns, streams, arm_rows)


@dataclass(slots=True)
class Lane:
    """What is held of one subject: 4 bytes a number and 8 a row while it learns, then as much as its reference."""

    recipe: Recipe
    watch: Watch
    stage: int = 0
    times: array[float] = field(default_factory=lambda: array("d"))
    rows: array[float] = field(default_factory=lambda: array("f"))  # row by row
    curves: Curves | None = None

    @staticmethod
    def of(recipe: Recipe) -> Lane:
        """A subject that nothing is known of yet."""
        return Lane(recipe, Watch(recipe.plan, None))

    @property
    def armed(self) -> bool:
        """Whether it is held against a reference."""
        return self.watch.reference is not None and bool(self.watch.reference.names)

    def take(self, row: NDArray[np.float32], time: float, kernels: Kernels) -> bool:
        """Judge a row, float32[c], and learn from it while the reference grows; whether it is to be spoken of."""
        told = self._judge(row, time, kernels)
        if self.stage < len(_STAGES):
            self._learn(row, time, kernels)
        return told and self.watch.reference is not None

    def verdict(self, ts: float) -> Verdict:
        """What to say, after :meth:`take` said so."""
        assert self.watch.reference is not None  # noqa: S101 - only an armed lane speaks
        return judge(self.watch, self.watch.reference, ts)

    def _judge(self, row: NDArray[np.float32], time: float, kernels: Kernels) -> bool:
        reference = self.watch.reference
        if reference is None or self.curves is None or not reference.names:
            return False
        values = np.ascontiguousarray(self.curves.values(row[None])[:, reference.chosen])
        return self.watch.judge_values(reference, values, np.array([time]), kernels)

    def _learn(self, row: NDArray[np.float32], time: float, kernels: Kernels) -> None:
        """Add a row; a longer reference waits for the end of what the shorter one has found."""
        self.times.append(time)
        self.rows.frombytes(row.tobytes())
        if len(self.times) < _STAGES[self.stage] * self.recipe.arm_rows:
            return
        if not self.watch.shifted:
            rows = self._rows()
            self.curves = Curves.of(self.recipe.streams, rows)
            values = self.curves.values(rows).astype(np.float32)
            names = tuple(stream.name for stream in self.recipe.streams)
            two_valued = frozenset(stream.name for stream in self.recipe.streams if stream.two_valued)
            self.watch.arm(
                freeze_columns(
                    np.array(self.times), values, names, self.recipe.plan.alarms_per_week, kernels, two_valued
                )
            )
        self.stage += 1
        if self.stage == len(_STAGES):
            self.times, self.rows = array("d"), array("f")

    def _rows(self) -> NDArray[np.float32]:
        return np.array(self.rows, np.float32).reshape(-1, self.recipe.columns)

    def dump(self) -> dict[str, Any]:
        """For a snapshot."""
        return {
            "watch": self.watch.dump() if self.watch.reference is not None else None,
            "stage": self.stage,
            "times": np.array(self.times, np.float64),
            "rows": self._rows(),
            "curves": None if self.curves is None else self.curves.dump(),
        }

    @staticmethod
    def load(recipe: Recipe, state: dict[str, Any]) -> Lane:
        """What :meth:`dump` gave.

        Raises
        ------
        ValueError, KeyError, TypeError, AttributeError, IndexError
            It does not fit.
        """
        times, rows, stage = state["times"], state["rows"], int(state["stage"])
        fits = rows.shape[1] == recipe.columns and rows.dtype == np.float32 and times.dtype == np.float64
        if not fits or len(times) != len(rows) or not 0 <= stage <= len(_STAGES):
            raise ValueError("a lane's rows do not fit each other")
        return Lane(
            recipe,
            Watch(recipe.plan, None) if state["watch"] is None else Watch.load(recipe.plan, state["watch"]),
            stage,
            array("d", times.tobytes()),
            array("f", rows.tobytes()),
            None if state["curves"] is None else Curves.load(recipe.streams, state["curves"]),
        )
