"""R3: the disk changes what it was given: one bit in every byte of every file, every length, sectors of zeros, sectors
in each other's place.

The answer is right data, or `Corruption` (or another typed error, for the files that are read before the version is
known) that names the file; never wrong data, a hang or a death. What may be missing in silence is the end of the log,
from its last record on: nobody can tell that from a write that a power loss cut short.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Iterator

import pytest

import nokv
from nokv.engine.manifest.log import read_manifest
from nokv.engine.mode import STANDALONE, ModeRecord, write_mode
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CrashFiles
from tests.counts import count

SECTOR = 512
OPTIONS = {"wal_segment_bytes": 4096, "write_buffer_bytes": 1 << 20, "block_bytes": 512, "block_cache_bytes": 0}
State = dict[bytes, bytes]


def open_db(files: CrashFiles, *, read_only: bool = False) -> nokv.DB:
    return nokv.open(
        "db", files=files, executor=StepExecutor(inline=True), durability="process", read_only=read_only, **OPTIONS
    )


def make_store() -> tuple[CrashFiles, list[State]]:
    """About 24 KiB: two tables (one compacted), a log of three segments, MODE.json; and the state after each write."""
    files = CrashFiles(seed=3)
    dice = random.Random(3)
    db = open_db(files)
    state: State = {}
    history: list[State] = []

    def put(key: bytes, value: bytes | None) -> None:
        if value is None:
            db.delete(key)
            state.pop(key, None)
        else:
            db.put(key, value)
            state[key] = value
        history.append(dict(state))

    def drop(start: bytes, end: bytes) -> None:
        db.delete_range(start, end)
        for key in [key for key in state if start <= key < end]:
            del state[key]
        history.append(dict(state))

    for n in range(40):
        put(b"deep%02d" % n, dice.randbytes(dice.choice([0, 20, 90])))
    db.compact()
    for n in range(30):
        put(b"flat%02d" % n, dice.randbytes(60))
        put(b"deep%02d" % n, None if n % 3 else b"new")
    drop(b"deep32", b"deep36")
    drop(b"deep20", b"deep34")
    db.flush()
    for n in range(130):
        put(b"tail%02d" % (n % 40), dice.randbytes(40))
        if n % 20 == 10:
            drop(b"tail%02d" % (n % 40 - 5), b"tail%02d" % (n % 40))
    db.sync()
    write_mode("db", ModeRecord(mode=STANDALONE), files)
    image = files.crash_clone("keep")  # as a power loss leaves it: the log is still needed
    return image, history


STORE, HISTORY = make_store()


def paths(directory: str = "db") -> Iterator[str]:
    for name in STORE.listdir(directory):
        path = f"{directory}/{name}"
        try:
            yield from paths(path)
        except NotADirectoryError:
            if STORE.size(path) and name != "LOCK":
                yield path


PATHS = sorted(paths())


def used(path: str) -> int:
    """Bytes of a file up to the zeros at its end."""
    return len(STORE.read_file(path).rstrip(b"\0"))


def check(path: str, content: bytes, what: str) -> str:
    """One damaged copy of the store. Returns how it went."""
    disk = STORE.crash_clone("keep")
    disk.rot(path, content)
    before = {p: disk.read_file(p) for p in PATHS}
    try:
        db = open_db(disk)
    except nokv.Corruption as error:
        assert error.path, f"{what}: which file? {error}"
        assert {p: disk.read_file(p) for p in PATHS} == before, f"{what}: a refused open changed a file"
        return "refused"
    except (nokv.NotSupported, nokv.ModeError):
        assert path.endswith("MODE.json"), what
        return "refused"
    try:
        sound = path.endswith(".sst") and zlib.crc32(what.encode()) % 8 == 0 and reads_rightly(db, path, what)
        try:
            found = dict(db.scan())
        except nokv.Corruption as error:
            assert error.path == path, f"{what}: {error} names another file"
            reads_rightly(db, path, what)
            return "found out"
        if found != HISTORY[-1]:
            assert path.startswith("db/wal/"), f"{what}: wrong data"
            # Another end of what is not zero: as if its last sectors had never been written.
            lost = -2 if len(content.rstrip(b"\0")) == used(path) else -len(HISTORY)
            assert found in HISTORY[lost:], f"{what}: more than the last record is gone"
            return "shorter"
        sound = reads_rightly(db, path, what) and sound
        if path.endswith(".sst"):
            assert {error.path for error in db.verify().damaged} == {path}, f"{what}: not verified"
            if zlib.crc32(what.encode()) % 16 == 0:  # no damage is carried over into new tables
                compact(db, path, what)
        return "right" if sound else "found out"
    finally:
        db.close()


def reads_rightly(db: nokv.DB, path: str, what: str) -> bool:
    """A point read finds the truth, or says that it cannot. Whether all of them found it."""
    sound = True
    for key, value in HISTORY[-1].items():
        try:
            assert db.get(key) == value, f"{what}: wrong data"
        except nokv.Corruption as error:
            assert error.path == path, f"{what}: {error} names another file"
            sound = False
    try:
        assert db.get_many(list(HISTORY[-1])) == list(HISTORY[-1].values()), f"{what}: wrong data"
    except nokv.Corruption as error:
        assert error.path == path and not sound, f"{what}: {error}"
    return sound


def compact(db: nokv.DB, path: str, what: str) -> None:
    try:
        db.compact()
    except nokv.Corruption as error:
        assert error.path == path, f"{what}: {error} names another file"
    else:
        assert not db.verify().damaged and dict(db.scan()) == HISTORY[-1], f"{what}: wrong data after a compaction"


def bits(path: str, every: int, all_bits: bool) -> Iterator[tuple[bytes, str]]:
    content = STORE.read_file(path)
    for offset in range(0, used(path), 1):
        for bit in range(8):
            if not all_bits and (offset % every or bit != offset // every % 8):
                continue
            damaged = bytearray(content)
            damaged[offset] ^= 1 << bit
            yield bytes(damaged), f"{path}: bit {bit} of byte {offset}"


def lengths(path: str, every: int) -> Iterator[tuple[bytes, str]]:
    content = STORE.read_file(path)
    for size in range(0, used(path), every):
        yield content[:size], f"{path}: cut to {size} bytes"


def sectors(path: str) -> Iterator[tuple[bytes, str]]:
    content = STORE.read_file(path)
    places = range(0, used(path), SECTOR)
    for place in places:
        yield content[:place] + bytes(SECTOR) + content[place + SECTOR :], f"{path}: zeros at {place}"
    for one, other in itertools.pairwise(places):
        a, b = content[one : one + SECTOR], content[other : other + SECTOR]
        yield content[:one] + b + a + content[other + SECTOR :], f"{path}: sectors at {one} and {other} swapped"


def sweep(cases: Callable[[str], Iterator[tuple[bytes, str]]]) -> None:
    outcomes: dict[str, int] = {}
    for path in PATHS:
        original = STORE.read_file(path)
        for content, what in cases(path):
            if content == original:
                continue
            try:
                outcome = check(path, content, what)
            except nokv.NoKVError as error:
                raise AssertionError(f"{what}: {error!r}") from error
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes.get("refused", 0) > 0
    print(outcomes)


def test_the_store_is_what_the_sweep_needs() -> None:
    names = {path.rsplit("/", 1)[-1].rsplit(".", 1)[-1].split("-")[0] for path in PATHS}
    assert names >= {"wal", "sst", "MANIFEST", "CURRENT", "json"}
    assert 12_000 < sum(used(path) for path in PATHS) < 40_000
    db = open_db(STORE.crash_clone("keep"))
    assert dict(db.scan()) == HISTORY[-1]
    db.close()


@pytest.mark.counted
def test_flipped_bits() -> None:
    """One bit of every fifth byte, one of every byte, or all of them."""
    sweep(lambda path: bits(path, count(5, 1, 1), all_bits=count(0, 0, 1) == 1))


@pytest.mark.counted
def test_cut_files() -> None:
    """At every seventh length, or at every one."""
    sweep(lambda path: lengths(path, count(7, 1, 1)))


def test_a_manifest_without_its_last_edits() -> None:
    """It ends cleanly, so that it looks like an older one; the tables that it no longer names are no leftovers."""
    path = next(path for path in PATHS if "MANIFEST" in path)
    content, ends = STORE.read_file(path)[: used(path)], []
    for size in range(len(content)):
        try:
            edits, torn = read_manifest(content[:size], path, 1)
        except nokv.Corruption:
            continue
        if edits and torn is None:
            ends.append(size)
    assert len(ends) > 2
    for size in ends:
        assert check(path, content[:size], f"{path}: cut to {size} bytes") == "refused"


def test_repair_of_a_cut_manifest_loses_nothing() -> None:
    """Tables and log hold every key, whatever is left of the manifest."""
    path = next(path for path in PATHS if "MANIFEST" in path)
    content = STORE.read_file(path)[: used(path)]
    for size in range(len(content)):
        disk = STORE.crash_clone("keep")
        disk.rot(path, content[:size])
        nokv.repair("db", files=disk)
        db = open_db(disk)
        assert dict(db.scan()) == HISTORY[-1], f"{path}: cut to {size} bytes"
        db.close()


def test_sectors_of_zeros_and_swapped_sectors() -> None:
    sweep(sectors)
