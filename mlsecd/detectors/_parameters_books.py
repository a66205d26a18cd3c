"""Whose request it is, and where its counts are kept: those near an alarm cannot be pushed out by a flood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from mlsecd.detectors._parameters_account import Account
from mlsecd.records import RequestBatch
from mlsecd.windows.keyed import Keyed

__all__ = ["TICK", "Books", "Names", "Rooms", "Who", "subject_of"]

S = TypeVar("S")

TICK: Final = 10.0  # seconds of event time within which accounts are not put in order of recency
_SUSPECT: Final = 0.25  # of the way to an alarm
_USER: Final = 2  # bit of a name's first number: it is an end user's


class Who:
    """A batch's columns that name an account, looked up once."""

    def __init__(self, batch: RequestBatch) -> None:
        self.client = batch.text("client")
        self.user = batch.text("user")
        self.synthetic = batch.synthetic


class Names:
    """Accounts' names: the client, or the client and its end user where the operator declared an aggregator."""

    def __init__(self, aggregators: Sequence[str]) -> None:
        self._aggregators = frozenset(aggregators)

    def of(self, who: Who, row: int) -> str:
        """The account of a row that has a client."""
        client, synthetic = who.client.at(row) or "", int(who.synthetic[row])
        user = who.user.at(row) if client in self._aggregators else None
        # names are their senders' text: the client's length tells where it ends, whatever it holds
        return f"{synthetic}:{client}" if user is None else f"{synthetic | _USER}:{len(client)}:{client}{user}"


def subject_of(name: str) -> tuple[str, bool, dict[str, str]]:
    """An account's subject, whether it is synthetic, and its client and user where it is an aggregator's."""
    kind, _, who = name.partition(":")
    if not int(kind) & _USER:
        return who, kind == "1", {}
    length, _, both = who.partition(":")
    client, user = both[: int(length)], both[int(length) :]
    return f"{client}/{user}", bool(int(kind) & 1), {"client": client, "user": user}


class Rooms(Generic[S]):
    """States by name, in two rooms: all, and those that came a quarter of the way to an alarm.

    A million accounts with a request each push out only each other. Who is in the second room must have
    sent a quarter of an attack.
    """

    def __init__(self, limit: int, suspects: int, make: Callable[[], S]) -> None:
        self._handed: S = make()
        self._all: Keyed[S] = Keyed(limit, lambda _: make(), TICK)
        self._suspects: Keyed[S] = Keyed(suspects, lambda _: self._handed, TICK)

    def __len__(self) -> int:
        return len(self._all) + len(self._suspects)

    @property
    def suspects(self) -> int:
        """States in the second room."""
        return len(self._suspects)

    @property
    def evicted(self) -> int:
        """States that were forgotten to make room."""
        return self._all.evicted + self._suspects.evicted

    def touch(self, name: str, ts: float) -> S | None:
        """A name's state, made where it is new; ``None``: there is no room."""
        return (self._suspects if name in self._suspects else self._all).touch(name, ts)

    def drop(self, name: str) -> None:
        """Forget a name."""
        self._all.drop(name)
        self._suspects.drop(name)

    def weigh(self, name: str, ts: float, state: S, risk: float) -> None:
        """Move a state to the second room, if ``risk``, its share of an alarm, is high enough."""
        if risk >= _SUSPECT and name in self._all:
            self._handed = state
            if self._suspects.touch(name, ts) is not None:
                self._all.drop(name)

    def items(self) -> list[tuple[str, S]]:
        """All pairs."""
        return [*self._all.items(), *self._suspects.items()]

    def dump(self, pack: Callable[[S], Any]) -> list[Any]:
        """What a snapshot holds."""
        return [
            [held.evicted, held.refused, [(name, tick, pack(state)) for name, tick, state in held.dump()]]
            for held in (self._all, self._suspects)
        ]

    def load(self, dumped: list[Any], unpack: Callable[[Any], S]) -> None:
        """Take back what :meth:`dump` gave."""
        loaded = [
            (int(evicted), int(refused), [(str(name), int(tick), unpack(one)) for name, tick, one in held])
            for evicted, refused, held in dumped
        ]
        for room, (evicted, refused, held) in zip((self._all, self._suspects), loaded, strict=True):
            room.evicted, room.refused = evicted, refused
            room.load(held)


class Books(Rooms[Account]):
    """Accounts of parameters, by epoch."""

    def __init__(self, limit: int, suspects: int) -> None:
        super().__init__(limit, suspects, Account)

    def enter(self, name: str, ts: float, epoch_seconds: float) -> Account | None:
        """An account for a row at ``ts``, fresh where an epoch begins; ``None``: there is no room."""
        account, tick = self.touch(name, ts), ts // TICK * TICK
        if account is not None and account.signs and tick - account.started >= epoch_seconds:
            self.drop(name)
            account = self.touch(name, ts)
        if account is not None:
            account.started = min(account.started, tick)  # later only where the clock was set back
        if account is not None and not account.signs:
            account.started, account.first_ts = tick, ts
        return account
