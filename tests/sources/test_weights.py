"""Model files on a real file system, real readers, and the kernel's own events where they may be had."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import itertools
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlsecd import kernels
from mlsecd.detectors._allow import Allow
from mlsecd.detectors.integrity_weights import DETECTOR, Params
from mlsecd.errors import SourceError
from mlsecd.meters import Meters
from mlsecd.records import FileSample, Severity
from mlsecd.sources import file_uses, page_cache
from mlsecd.sources.page_cache import Reading, opened
from mlsecd.sources.weights import Weights, WeightsParams
from mlsecd.sources.weights_digest import Hasher, sampled, stamp_of

Make = Callable[..., Weights]
READER = "import sys, mmap, time\n{}\nprint('ready', flush=True)\ntime.sleep(60)\n"
OPEN = READER.format("held = open(sys.argv[1], 'rb')")
MAP = READER.format("with open(sys.argv[1], 'rb') as f: held = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(os.urandom(1 << 20))
    return path


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Weights] = []

    def start(*paths: Path | str, **params: Any) -> Weights:
        made.append(Weights(WeightsParams(paths=tuple(map(str, paths)), **params), Meters()))
        return made[-1]

    yield start
    for one in made:
        one.close()


@contextlib.contextmanager
def reader(code: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == b"ready\n"
        try:
            yield one
        finally:
            one.kill()


def look(source: Weights) -> FileSample:
    (found,) = source.poll(time.monotonic() + 30).records
    assert isinstance(found, FileSample)
    return found


def until(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + 30
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found


def test_a_file_is_described_and_hashed_in_the_background(model: Path, make: Make) -> None:
    source = make(model.parent)
    (file,) = look(source).files
    found = model.stat()
    assert (file.path, file.inode, file.size) == (str(model), found.st_ino, 1 << 20)
    assert len(file.sampled or "") == 32
    digest = until(lambda: look(source).files[0].sha256)
    assert digest == hashlib.sha256(model.read_bytes()).hexdigest()


@pytest.mark.parametrize(("code", "how"), [(OPEN, "open"), (MAP, "mapped")])
def test_who_has_it_open_or_mapped(model: Path, make: Make, code: str, how: str) -> None:
    with reader(code, model) as one:
        mine = [use for use in look(make(model, events=False)).uses if use.pid == one.pid]
    assert [(use.how, use.path, use.uid) for use in mine] in (
        [(how, str(model), os.getuid())],
        [("mapped", str(model), os.getuid())],
    )
    assert mine[0].exe == os.path.realpath(sys.executable)


def test_a_file_that_was_replaced_under_its_reader(model: Path, make: Make) -> None:
    with reader(MAP, model) as one:
        (model.parent / "new").write_bytes(os.urandom(1 << 20))
        (model.parent / "new").rename(model)
        uses = look(make(model, events=False)).uses
    assert [use.how for use in uses if use.pid == one.pid] == ["mapped_deleted"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")
def test_the_kernel_tells_of_a_reader_that_is_gone_before_the_next_look(model: Path, make: Make) -> None:
    source = make(model)
    if any(entry.startswith("opens:") for entry in look(source).blind):
        pytest.skip("fanotify is not permitted here")

    def copied() -> list[Any]:
        subprocess.run(["cp", str(model), str(model.parent.parent / "copy")], check=True)
        time.sleep(0.2)
        return [use for use in look(source).uses if use.how == "opened"]

    uses = until(copied)
    assert {use.path for use in uses} == {str(model)}
    # the process may be gone before it could be looked at: then it is told of without its name
    assert {use.exe for use in uses} <= {None, os.path.realpath("/bin/cp")}


def test_a_changed_file_and_a_foreign_reader_become_findings(model: Path, make: Make) -> None:
    """From the file system to the finding: a copied and then tampered model, its times put back."""
    source = make(model, events=False, sample_seconds=0.001)
    detector = DETECTOR(Params(readers=(Allow(exe="/opt/vllm/**"),)), kernels)
    assert detector.observe(look(source)) == []
    with reader(OPEN, model) as one:
        (found,) = detector.observe(look(source))
    assert (found.severity, found.evidence["pid"], found.evidence["file"]) == (Severity.HIGH, one.pid, str(model))
    before = model.stat()
    with model.open("r+b") as file:
        file.write(b"tampered")
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    (found,) = [one for one in detector.observe(look(source)) if one.subject_kind == "file"]
    assert found.severity is Severity.HIGH
    assert found.reason == (
        f'"{model}" changed: its sampled digest differs; its modification time was not, or was put back'
    )


def test_patterns_missing_files_and_limits(model: Path, make: Make) -> None:
    (model.parent / "b.gguf").write_bytes(b"x")
    (model.parent / "link").symlink_to("/dev/zero")
    os.mkfifo(model.parent / "pipe")
    source = make(str(model.parent / "*.gguf"), str(model.parent), events=False)
    assert [Path(file.path).name for file in look(source).files] == ["b.gguf", "model.safetensors"]
    (model.parent / "b.gguf").unlink()
    assert look(source).missing == (str(model.parent / "b.gguf"),)
    few = make(str(model.parent), max_files=1, events=False)
    assert any(entry.startswith("files: ") for entry in look(few).blind)
    with pytest.raises(SourceError, match="no configured model file"):
        look(make("/nowhere/*.bin", events=False))
    assert Weights(WeightsParams(), Meters()).supported() is not None


def test_everybody_is_searched_seldom_and_users_and_newcomers_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def held(base: str, *_: object) -> dict[str, str] | None:
        pid = int(base.rpartition("/")[2])
        looked.append(pid)
        return {"/m": "mapped"} if pid == 7 else None if pid == 9 else {}

    clock = [1000.0]
    monkeypatch.setattr(file_uses, "_of", held)
    monkeypatch.setattr(file_uses, "time", SimpleNamespace(monotonic=lambda: clock[0], thread_time=time.thread_time))
    for pid in (7, 8, 9):
        (tmp_path / str(pid)).mkdir()
    search = file_uses.Search(str(tmp_path), 60.0)
    monkeypatch.setitem(file_uses.HOLDERS, (str(tmp_path), "/dev/nvidia"), (0.0, frozenset({8})))
    first = search.look({(1, 1): "/m"}, 1e9)
    assert ([one.pid for one in first.found], first.denied, looked) == ([7], 1, [8, 9, 7])
    times: dict[int, list[float]] = {7: [], 8: [], 9: [], 10: []}
    for second in range(10, 300, 10):
        clock[0] = 1000.0 + second
        if second == 100:
            (tmp_path / "10").mkdir()
        looked.clear()
        search.look({(1, 1): "/m"}, 1e9)
        for pid in looked:
            times[pid].append(second)
    assert len(times[7]) == len(times[8]) == 29, "a user and a GPU process each time"
    assert times[10][:3] == [100, 110, 120], "a newcomer soon"
    assert max(b - a for a, b in itertools.pairwise(times[9])) <= 60
    assert len(times[9]) <= 12
    looked.clear()
    search.look({(1, 2): "/m"}, 1e9)
    assert sorted(looked) == [7, 8, 9, 10], "other files: everybody is searched anew"


def test_samples_see_both_ends_and_the_size(tmp_path: Path) -> None:
    def digest(data: bytes) -> str:
        path = tmp_path / "one"
        path.write_bytes(data)
        with path.open("rb") as file:
            return sampled(file.fileno(), len(data))

    zeros = bytes(1 << 20)
    every = {digest(zeros), digest(b"x" + zeros[1:]), digest(zeros[:-1] + b"x"), digest(zeros[1:]), digest(b"")}
    assert len(every) == 5


def resident(path: Path) -> list[int]:
    """Which pages of a file are in the page cache, by mincore: a witness other than the code's own."""
    size = path.stat().st_size
    with path.open("rb") as file:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        address = libc.mmap(None, ctypes.c_size_t(size), 1, 1, file.fileno(), ctypes.c_long(0))
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) == 0
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
        return [at for at, page in enumerate(pages) if page & 1]


def on_disk(path: Path, size: int = (8 << 20) + 1234) -> bytes:
    """Write a file of which nothing is in the page cache."""
    data = os.urandom(size)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if len(resident(path)) > 100:
        pytest.skip("this file system keeps everything in memory")
    return data


def warm(path: Path, data: bytes) -> None:
    """Put every third stretch of some 300 KiB into the cache, as a server that uses part of a file does."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for at in range(0, len(data), 900_000):
            assert os.pread(file.fileno(), 300_000, at) == data[at : at + 300_000]


def begin(path: Path) -> None:
    """Read the first 256 KiB as a server does that loads the file: the kernel reads ahead, and marks where it did."""
    with path.open("rb", buffering=0) as file:
        for _ in range(4):
            file.read(1 << 16)

    def settled() -> bool:
        before = resident(path)
        time.sleep(0.1)
        return resident(path) == before

    until(settled)


def cannot_look(*_: object) -> int:
    raise page_cache._UnknownError


WAYS = {"cachestat": (), "O_DIRECT": ("_cached",), "faults": ("_cached", "_open_around")}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way of leaving the cache alone, by taking away what kernels and file systems may lack."""
    lacks = WAYS[request.param]
    if "_cached" in lacks:
        monkeypatch.setattr(page_cache, "_cached", cannot_look)
    if "_open_around" in lacks:
        monkeypatch.setattr(Reading, "_open_around", lambda _: False)
    return str(request.param)


def used(way: str, path: Path) -> None:
    """Skip where this kernel or file system has no such way."""
    fd = opened(str(path))
    reading = Reading(fd)
    how = {reading._looked: "cachestat", reading._direct: "O_DIRECT", reading._touched: "faults"}[reading._how]
    reading.close()
    os.close(fd)
    if how != way:
        pytest.skip(f"no {way} here")


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Pages that a file had in the cache when a piece of it was read, and that were put out then.

    To look at the end would not do: a kernel drops pages by itself, where memory is short or cold (DAMON).
    """
    found: set[int] = set()
    held: set[int] = set()
    read, advise = Reading.read, os.posix_fadvise

    def reads(self: Reading, length: int, offset: int) -> bytes:
        held.clear()
        held.update(resident(Path(f"/proc/self/fd/{self._fd}").readlink()))
        return read(self, length, offset)

    def advises(fd: int, offset: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED:
            found.update(held.intersection(range(offset // mmap.PAGESIZE, -(-(offset + length) // mmap.PAGESIZE))))
        advise(fd, offset, length, advice)

    monkeypatch.setattr(Reading, "read", reads)
    monkeypatch.setattr(os, "posix_fadvise", advises)
    return found


@pytest.mark.parametrize("cached", ["nothing", "parts", "beginning", "all"])
def test_hashing_leaves_the_page_cache_as_it_was(tmp_path: Path, way: str, cached: str, lost: set[int]) -> None:
    path = tmp_path / "large"
    data = on_disk(path)
    used(way, path)
    if cached == "parts":
        warm(path, data)
    elif cached == "beginning":
        begin(path)
    elif cached == "all":
        path.read_bytes()
    before = set(resident(path))
    hasher = Hasher(1e12)
    try:
        stamp = stamp_of(path.stat())
        assert until(lambda: hasher.want(str(path), stamp)) == hashlib.sha256(data).hexdigest()
    finally:
        hasher.stop()
    assert set(resident(path)) <= before
    assert not lost


def test_samples_leave_the_page_cache_as_it_was(tmp_path: Path, way: str, lost: set[int]) -> None:
    path = tmp_path / "large"
    data = on_disk(path)
    used(way, path)
    warm(path, data)
    before = set(resident(path))
    fd = opened(str(path))
    digests = {sampled(fd, len(data)) for _ in range(3)}
    os.close(fd)
    assert len(digests) == 1
    assert set(resident(path)) <= before
    assert not lost


@given(st.integers(0, 3 << 20), st.integers(0, 3 << 20))
def test_any_piece_is_read_as_it_stands(tmp_path_factory: pytest.TempPathFactory, offset: int, length: int) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces"
    if not path.exists():
        path.write_bytes(os.urandom((1 << 20) + 777))
    data, fd = path.read_bytes(), opened(str(path))
    try:
        for how in ("_looked", "_direct", "_touched"):
            reading = Reading(fd)
            if (how == "_direct" and not reading._open_around()) or (
                how == "_looked" and reading._how != reading._looked
            ):
                continue
            reading._how = getattr(reading, how)
            with contextlib.closing(reading):
                assert reading.read(length, offset) == data[offset:][: min(length, 1 << 20)], how
    finally:
        os.close(fd)


@contextlib.contextmanager
def reading_of(path: Path) -> Iterator[Reading]:
    fd = opened(str(path))
    try:
        with contextlib.closing(Reading(fd)) as reading:
            yield reading
    finally:
        os.close(fd)


def test_a_file_that_is_cut_short_while_it_is_mapped_is_no_signal(model: Path) -> None:
    data = model.read_bytes()
    with reading_of(model) as reading, page_cache._mapped(reading._fd, len(data), 0) as pages:
        os.truncate(model, mmap.PAGESIZE)
        assert reading._copied(pages, len(data), 0) == data[: mmap.PAGESIZE]
        os.truncate(model, 0)
        with pytest.raises(OSError, match="Bad address"):
            reading._copied(pages, len(data), 0)
        with pytest.raises(OSError, match="shorter"), page_cache._mapped(reading._fd, len(data), 0):
            pass


def refused(*_: object) -> None:
    raise OSError


@pytest.mark.parametrize(("way", "lacks"), [("_looked", "_mapped"), ("_touched", "_mapped"), ("_touched", "_fetched")])
def test_a_file_that_cannot_be_mapped_or_an_older_kernel(
    model: Path, monkeypatch: pytest.MonkeyPatch, way: str, lacks: str
) -> None:
    monkeypatch.setattr(page_cache, lacks, refused)
    with reading_of(model) as reading:
        if way == "_looked" and reading._how != reading._looked:
            pytest.skip("no cachestat here")
        reading._how = getattr(reading, way)
        assert reading.read(9_000, 5_000) == model.read_bytes()[5_000:14_000]


def test_the_background_pass_keeps_to_its_rate(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(4 << 20))
    hasher = Hasher(8 << 20)
    started = time.monotonic()
    try:
        until(lambda: hasher.want(str(path), stamp_of(path.stat())))
    finally:
        hasher.stop()
    assert time.monotonic() - started >= 0.3


def test_a_file_of_holes_is_not_read_for_days(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    hasher = Hasher(1e12)
    try:
        assert hasher._hash(str(path), stamp_of(path.stat())) is None
    finally:
        hasher.stop()
