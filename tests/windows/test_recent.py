from __future__ import annotations

import numpy as np
import pytest

from mlsecd.errors import StateError
from mlsecd.windows.recent import Recent


def push(recent: Recent, first: int, count: int) -> None:
    """As the kernels do."""
    recent.make_room(count)
    for i in range(first, first + count):
        at = int(recent.pushed[0]) % recent.limit
        recent.codes[:, at] = i % 100
        recent.labels[at] = i
        recent.keys[at] = i
        recent.pushed[0] += 1


@pytest.mark.parametrize("sizes", [[1] * 90, [33, 57], [90], [31, 1, 1, 57]])
def test_it_keeps_the_latest_however_they_come(sizes: list[int]) -> None:
    recent, first = Recent(3, 50), 0
    for size in sizes:
        push(recent, first, size)
        first += size
    assert len(recent) == 50
    assert sorted(recent.labels.tolist()) == list(range(40, 90))


def test_it_grows_with_need_and_no_further() -> None:
    recent = Recent(32, 1_024)
    assert recent.nbytes == 8
    push(recent, 0, 5)
    assert recent.nbytes == 8 + 32 * (32 + 2 + 4)
    push(recent, 5, 3_000)
    assert recent.nbytes == 8 + 1_024 * (32 + 2 + 4) <= 39 * 1_024


def test_no_room_is_no_window() -> None:
    recent = Recent(4, 0)
    recent.make_room(10)
    assert (len(recent), recent.codes.shape) == (0, (4, 0))


@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 130])
def test_a_dump_goes_on_where_it_stopped(count: int) -> None:
    one = Recent(3, 50)
    push(one, 0, count)
    other = Recent.load(3, 50, one.dump())
    push(one, count, 20)
    push(other, count, 20)
    assert len(one) == len(other)
    for before, after in zip(one.dump(), other.dump(), strict=True):
        assert np.array_equal(before, after)


def test_a_dump_of_another_shape_is_refused() -> None:
    one = Recent(3, 50)
    push(one, 0, 10)
    with pytest.raises(StateError):
        Recent.load(4, 50, one.dump())
