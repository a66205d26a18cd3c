"""Lines come out whole, whatever pieces the bytes came in, and memory stays bounded."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mlsecd.sources.lines import LineCutter

LIMIT = 16

lines = st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=12)


def cut(pieces: list[bytes]) -> list[bytes]:
    cutter = LineCutter(LIMIT)
    blobs = []
    for piece in pieces:
        blob = cutter.feed(piece)
        assert not blob or blob.endswith(b"\n")
        assert cutter.pending <= LIMIT
        blobs.append(blob)
    blobs.append(cutter.finish())
    return b"".join(blobs).split(b"\n")[:-1]


@given(lines=lines, cuts=st.lists(st.integers(0, 500), max_size=20), ends=st.booleans())
def test_any_pieces_give_the_same_lines(lines: list[bytes], cuts: list[int], ends: bool) -> None:
    data = b"\n".join(lines) + (b"\n" if ends and lines else b"")
    edges = sorted({min(at, len(data)) for at in cuts} | {0, len(data)})
    pieces = [data[start:end] for start, end in itertools.pairwise(edges)]
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    got = cut(pieces)
    assert len(got) == len(expected)
    for one, whole in zip(got, expected, strict=True):
        if len(whole) <= LIMIT:
            assert one == whole
        else:  # refused by its length, whatever is left of it
            assert len(one) > LIMIT
            assert whole.startswith(one)


def test_a_line_without_end_holds_no_memory() -> None:
    cutter = LineCutter(LIMIT)
    assert cutter.feed(b"x" * 20) == b"x" * 17 + b"\n"
    for _ in range(100):
        assert cutter.feed(b"y" * 1000) == b""
        assert (cutter.pending, cutter.skipping) == (0, True)
    assert cutter.feed(b"y\nnext\npart") == b"next\n"
    assert cutter.pending == 4
    assert cutter.finish() == b"part\n"
    assert cutter.finish() == b""


def test_reset_forgets() -> None:
    cutter = LineCutter(LIMIT)
    cutter.feed(b"x" * 20)
    cutter.reset()
    assert cutter.feed(b"a\n") == b"a\n"
    cutter.feed(b"half")
    cutter.reset()
    assert cutter.finish() == b""
