from __future__ import annotations

from mlsecd.windows.keyed import Keyed


def keyed(limit: int) -> Keyed[list[str]]:
    return Keyed(limit, lambda key: [key], 10.0, keep=lambda state: len(state) > 1)


def mark(held: Keyed[list[str]], key: str, ts: float) -> None:
    state = held.touch(key, ts)
    assert state is not None
    state.append("worth it")


def test_a_million_strangers_do_not_push_out_who_was_worth_watching() -> None:
    held = keyed(20)
    mark(held, "suspect", 0.0)
    for i in range(10_000):
        held.touch(f"stranger{i}", 10.0 + i)
    assert "suspect" in held
    assert held.peek("suspect") == ["suspect", "worth it"]
    assert len(held) == 20
    assert held.kept == 1
    assert held.evicted == 10_000 - 19


def test_those_who_are_kept_hold_half_at_the_most() -> None:
    held = keyed(20)
    for i in range(100):
        mark(held, f"suspect{i}", 10.0 * i)
    assert len(held) == 20
    assert held.kept <= 11
    assert "suspect99" in held
    held.touch("newcomer", 2_000.0)
    assert "newcomer" in held


def test_what_is_touched_in_this_interval_stays_whatever_it_is() -> None:
    held = keyed(4)
    for key in "abcd":
        mark(held, key, 1.0)
    assert held.touch("e", 2.0) is None
    assert held.refused == 1
    assert held.touch("a", 2.0) is not None
    assert held.touch("e", 11.0) is not None


def test_a_snapshot_keeps_who_is_kept() -> None:
    held, other = keyed(6), keyed(6)
    mark(held, "suspect", 0.0)
    for i in range(20):
        held.touch(f"stranger{i}", 10.0 + 10 * i)
    other.load(held.dump(), held.kept)
    assert other.dump() == held.dump()
    for one in (held, other):
        for i in range(20):
            one.touch(f"later{i}", 1_000.0 + 10 * i)
    assert other.dump() == held.dump()
    assert "suspect" in other
    other.drop("suspect")
    assert "suspect" not in other
