"""One model under watch, and beside it each customer who sends so much that it must be held against itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from mlsecd.detectors._drift_plan import Plan
from mlsecd.detectors._drift_reference import Reference
from mlsecd.detectors._drift_streams import WINDOW_ROWS, Columns
from mlsecd.detectors._drift_watch import Watch
from mlsecd.kernels import Kernels
from mlsecd.records import I8

__all__ = ["TENANTS_MAX", "House", "Tenant"]

TENANTS_MAX: Final = 2  # of a model
_SHARE: Final = 0.3  # of a block's rows, retries and all: such a client leads it
_BLOCK: Final = 1_000  # rows
_OFTEN: Final = 0.5  # of all blocks so far that a dominant client leads
_LED_MAX: Final = 64  # clients whose blocks are counted
_NAME_CHARS: Final = 64


class Tenant(NamedTuple):
    """A dominant customer, or one who may become one."""

    name: str
    watch: Watch


@dataclass(slots=True)
class House:
    """A model's watch, and those of its tenants.

    A client that leads a block of a thousand rows is learned from beside the model, with no cap on its share. When
    the model's reference is made, the clients that led at least half of the blocks so far stay out of it: they are
    its tenants, their rows are scored against their own references, and not among the others'. Between two
    references nobody becomes one, or a flood could take rows out of sight.

    Of a model's budget T tenants leave 1 / (1 + T) to the rest, and have a third each: never more than all of it.

    Memory: for each of at most two tenants half of what the model's own watch takes.
    """

    plan: Plan
    shared: Watch
    own: dict[int, Tenant] = field(default_factory=dict)  # by client
    given: dict[str, Reference] = field(default_factory=dict)  # tenants' references of a baseline, by name
    counts: dict[int, int] = field(default_factory=dict)  # rows of this block by client
    names: dict[int, str] = field(default_factory=dict)  # of those who lead it already
    rows: int = 0
    blocks: int = 0
    led: dict[int, int] = field(default_factory=dict)
    force: tuple[int, ...] = ()  # tenants of the reference as it was when this block began

    @staticmethod
    def learning(plan: Plan) -> House:
        """A model that nothing is known of yet."""
        return House(plan, Watch.learning(plan))

    @staticmethod
    def armed(plan: Plan, reference: Reference, own: dict[str, Reference]) -> House:
        """A model whose references come from a baseline, those of its tenants by name."""
        made = House(plan, Watch.armed(plan, reference), given=own, force=reference.tenants)
        for client, name in zip(reference.tenants, reference.tenant_names, strict=True):
            watch = Watch.armed(_plan_of_one(plan), own[name]) if name in own else Watch.learning(_plan_of_one(plan))
            made.own[client] = Tenant(name, watch)
        return made

    @property
    def tenants(self) -> list[Tenant]:
        """Those in force."""
        return [self.own[client] for client in self.force if client in self.own]

    def observe(self, columns: Columns, rows: I8, kernels: Kernels) -> Iterator[tuple[int, Watch, str]]:
        """Fold rows; yield each that is to be spoken of, the watch that found it, and the tenant's name or ``""``."""
        while len(rows):
            part, rows = rows[: _BLOCK - self.rows], rows[_BLOCK - self.rows :]
            clients = columns.clients[part]
            self.lead()
            for row in self.shared.observe(columns, part, kernels):
                yield row, self.shared, ""
            for client, tenant in self.own.items():
                for row in tenant.watch.observe(columns, part[clients == client], kernels):
                    if client in self.force:
                        yield row, tenant.watch, tenant.name
            self._count(columns, part)

    def lead(self) -> None:
        """Leave out of the model's next reference who led at least half of the blocks so far, the most often first."""
        often = sorted((-led, client) for client, led in self.led.items() if led >= _OFTEN * self.blocks)
        self.shared.without = {client: self.own[client].name for _, client in often if client in self.own}

    def _count(self, columns: Columns, part: I8) -> None:
        clients, first, counts = np.unique(columns.clients[part], return_index=True, return_counts=True)
        for client, count in zip(clients.tolist(), counts.tolist(), strict=True):
            self.counts[client] = self.counts.get(client, 0) + count
            if client and self.counts[client] >= _SHARE * _BLOCK and client not in self.names:
                row = int(part[first[clients == client][0]])
                self.names[client] = columns.client_name(row)[:_NAME_CHARS]
        self.rows += len(part)
        if self.rows < _BLOCK:
            return
        self.blocks += 1
        if self.shared.reference is not None:
            self.force = self.shared.reference.tenants
        for client, name in sorted(self.names.items()):
            self.led[client] = self.led.get(client, 0) + 1
            if client not in self.own:
                self._admit(client, name)
        self.counts, self.names, self.rows = {}, {}, 0
        for _, client in sorted((led, client) for client, led in self.led.items())[: max(0, len(self.led) - _LED_MAX)]:
            del self.led[client]

    def _admit(self, client: int, name: str) -> None:
        """Begin to learn of a client; the candidate that leads least often makes room."""
        if len(self.own) >= TENANTS_MAX:
            spare = [(self.led.get(one, 0), one) for one in self.own if one not in self.force]
            if not spare or min(spare)[0] >= self.led[client]:
                return
            del self.own[min(spare)[1]]
        self.own[client] = Tenant(name, Watch.learning(_plan_of_one(self.plan)))

    def dump(self, baseline: str | None = None) -> dict[str, Any]:
        """All of it, for a snapshot; a baseline's references are named by its digest only."""
        return {
            "baseline": baseline,
            "shared": self.shared.dump(baseline),
            "own": [
                [client, one.name, one.watch.dump(baseline if one.name in self.given else None)]
                for client, one in self.own.items()
            ],
            "counts": list(self.counts.items()),
            "names": list(self.names.items()),
            "rows": self.rows,
            "blocks": self.blocks,
            "led": list(self.led.items()),
            "force": list(self.force),
        }

    @staticmethod
    def load(
        plan: Plan, state: dict[str, Any], baseline: Reference | None = None, own: dict[str, Reference] | None = None
    ) -> House:
        """What :meth:`dump` gave.

        Raises
        ------
        ValueError, KeyError, TypeError
            It does not fit.
        """
        given = own or {}
        made = House(plan, Watch.load(plan, state["shared"], baseline), given=given)
        for client, name, held in state["own"]:
            watch = Watch.load(_plan_of_one(plan), held, given[name] if held["baseline"] is not None else None)
            made.own[int(client)] = Tenant(str(name), watch)
        for name in ("counts", "led"):
            setattr(made, name, {int(client): int(count) for client, count in state[name]})
        made.names = {int(client): str(name) for client, name in state["names"]}
        made.rows, made.blocks = int(state["rows"]), int(state["blocks"])
        made.force = tuple(int(client) for client in state["force"])
        if not 0 <= made.rows < _BLOCK or len(made.own) > TENANTS_MAX:
            raise ValueError("a model's tenants are damaged")
        return made


def _plan_of_one(plan: Plan) -> Plan:
    """A tenant's: all of its rows count, half as many are kept, and it has its share of the model's false alarms."""
    alarms = plan.alarms_per_week / (1 + TENANTS_MAX)
    rows = max(plan.settings.rows // 2, plan.settings.arm)
    return plan._replace(
        settings=plan.settings._replace(rows=rows, alarms_per_week=alarms),
        stages=tuple((min(need, rows), seconds) for need, seconds in plan.stages),
        client_rows=WINDOW_ROWS,
        alarms_per_week=alarms,
    )
