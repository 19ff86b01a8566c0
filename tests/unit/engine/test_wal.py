"""The write-ahead log: parity with a list (ENG-12), shared types (ENG-03), damage (ENG-04), retention (ENG-05),
sync."""

from __future__ import annotations

import errno
import mmap
import random
import resource
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nokv
from nokv._ext.batch import WriteBatch
from nokv._ext.crc32c import crc32c
from nokv._ext.wal import DATA_START, HEADER_SIZE, TYPE_BATCH, SegmentWriter
from nokv.engine.wal import Wal
from nokv.engine.wal.recovery import recover, segment_name
from nokv.env.files import OsFiles
from nokv.env.ports import Files
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CRASH_MODES, CrashFiles, CrashMode, CrashPoint, FaultFiles

RECORDS = st.lists(
    st.tuples(st.integers(16, 19), st.one_of(st.binary(max_size=60), st.binary(min_size=900))), max_size=40
)


def contents(wal: Wal, types: set[int] | None = None) -> list[tuple[int, bytes]]:
    wanted = types if types is not None else set(range(16, 256))
    return [(record_type, payload) for _, record_type, payload in wal.replay(wanted)]


@pytest.fixture(params=["real", "crash"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Files, str]:
    return (OsFiles(), str(tmp_path / "wal")) if request.param == "real" else (CrashFiles(), "db/wal")


@given(records=RECORDS, segment_bytes=st.sampled_from([1024, 4096, 1 << 20]), reopen=st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_agrees_with_a_list(records: list[tuple[int, bytes]], segment_bytes: int, reopen: int) -> None:
    files = CrashFiles()
    wal = Wal(files, "wal", segment_bytes, ("test",))
    positions = []
    for number, record in enumerate(records):
        if number == reopen:
            wal.close()
            wal = Wal(files, "wal", segment_bytes, ("test",))
        positions.append(wal.append(*record))
    assert contents(wal) == records
    assert positions == sorted(positions)
    assert [position for position, _, _ in wal.replay({16, 17, 18, 19})] == positions
    assert contents(wal, {17}) == [record for record in records if record[0] == 17]
    wal.close()
    again = Wal(files, "wal", segment_bytes)
    assert contents(again) == records
    again.close()


def test_survives_process_death_without_a_sync(place: tuple[Files, str]) -> None:
    files, directory = place
    wal = Wal(files, directory, 4096)
    wal.append_many([(16, b"a" * n) for n in range(200)])
    survivor = files.crash_clone("process") if isinstance(files, CrashFiles) else files  # type: ignore[arg-type]
    again = Wal(survivor, directory, 4096)
    assert contents(again) == [(16, b"a" * n) for n in range(200)]


def test_a_record_larger_than_a_segment_gets_its_own(place: tuple[Files, str]) -> None:
    files, directory = place
    wal = Wal(files, directory, 1024)
    big = bytes(range(256)) * 40
    wal.append(16, b"before")
    wal.append(16, big)
    wal.append(16, b"after")
    wal.close()
    assert contents(Wal(files, directory, 1024)) == [(16, b"before"), (16, big), (16, b"after")]


def small_log() -> tuple[CrashFiles, list[tuple[int, bytes]], list[str]]:
    files = CrashFiles()
    wal = Wal(files, "wal", 1024)
    records = [(16 + n % 4, bytes([n]) * (n * 13 % 150)) for n in range(40)]
    wal.append_many(records)
    wal.close()
    return files, records, [f"wal/{name}" for name in files.listdir("wal")]


def with_bytes(files: CrashFiles, path: str, change: Callable[[bytearray], None]) -> CrashFiles:
    clone = files.crash_clone("keep")
    data = bytearray(clone.read_file(path))
    change(data)
    file = clone.create(path)
    file.write(bytes(data))
    file.close()
    return clone


def test_a_flipped_bit_anywhere_is_found() -> None:
    """ENG-04: right data, or Corruption with file and offset; what was synced never disappears silently."""
    files, records, paths = small_log()
    dice = random.Random(4)
    for path in paths:
        size = files.size(path)
        for offset in range(0, size, 5):
            bit = 1 << dice.randrange(8)

            def flip(data: bytearray, offset: int = offset, bit: int = bit) -> None:
                data[offset] ^= bit

            damaged = with_bytes(files, path, flip)
            try:
                found = contents(Wal(damaged, "wal", 1024))
            except nokv.Corruption as error:
                assert error.path.startswith("wal") and error.offset >= 0
                continue
            assert found == records, f"{path} at {offset}: lost {len(records) - len(found)} of {len(records)}"


def test_a_torn_tail_is_cut_and_damage_before_it_is_not() -> None:
    files = CrashFiles()
    wal = Wal(files, "wal", 4096)
    positions = [wal.append(16, b"record %d" % n) for n in range(10)]  # never synced
    path = "wal/" + segment_name(positions[0].segment)

    def tear(data: bytearray) -> None:
        data[positions[9].offset + 20] ^= 1

    def rot(data: bytearray) -> None:
        data[positions[4].offset + 20] ^= 1

    def lose(data: bytearray) -> None:
        data[positions[4].offset : positions[5].offset] = bytes(positions[5].offset - positions[4].offset)

    assert len(contents(Wal(with_bytes(files, path, tear), "wal", 4096))) == 9
    assert len(contents(Wal(with_bytes(files, path, lose), "wal", 4096))) == 4  # never reached the disk
    with pytest.raises(nokv.Corruption) as caught:
        Wal(with_bytes(files, path, rot), "wal", 4096)
    assert (caught.value.path, caught.value.offset) == (path, positions[4].offset)
    wal.sync()
    for change in (lose, rot):  # now the log can prove that it was there
        with pytest.raises(nokv.Corruption) as caught:
            Wal(with_bytes(files, path, change), "wal", 4096)
        assert caught.value.offset == positions[4].offset


@pytest.mark.parametrize("what", ["zeroes", "shifted"])
def test_a_segment_whose_records_are_all_bad_is_missed(what: str) -> None:
    """Found by the raft simulator (a write that went astray): the log began after it, as if it had been freed."""
    files, _, paths = small_log()

    def spoil(data: bytearray) -> None:
        data[:] = bytes(len(data)) if what == "zeroes" else data[20:] + bytes(20)

    for path in paths[:-1]:
        with pytest.raises(nokv.Corruption) as caught:
            Wal(with_bytes(files, path, spoil), "wal", 1024)
        assert caught.value.path == path


def test_a_freed_segment_is_zeroed_only_after_its_old_name_is_gone_for_good() -> None:
    """Otherwise power loss gives the name back to zeroes, and that looks like damage."""

    def workload(files: CrashFiles) -> Wal:
        wal = Wal(files, "wal", 1024, retainers=("raft",), recycle_syncs=0)
        for number in range(60):
            wal.retain("raft", wal.append(16, b"%03d" % number * 20).segment)
            wal.sync()
        return wal

    files = CrashFiles()
    assert workload(files).stats()["recycled"] > 3
    for crash_at in range(8, files.operation_count):
        dying = CrashFiles(crash_at=crash_at)
        with pytest.raises(CrashPoint):
            workload(dying)
        for mode in ("drop", "names", "random"):
            Wal(dying.crash_clone(mode, seed=crash_at), "wal", 1024)


@given(junk=st.binary(max_size=2000), seed=st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_refused_or_read(junk: bytes, seed: int) -> None:
    """R4: a parser of hostile bytes returns or raises Corruption, nothing else."""
    files, _, paths = small_log()
    path = paths[seed % len(paths)]

    def paste(data: bytearray) -> None:
        at = seed * 7 % max(1, len(data) - len(junk)) if len(junk) < len(data) else 0
        data[at : at + len(junk)] = junk[: len(data) - at]

    try:
        recover(with_bytes(files, path, paste), "wal")
    except (nokv.Corruption, nokv.NotSupported):
        pass


@pytest.mark.timeout(20)
@pytest.mark.parametrize("end", [48, 80, 100, 1 << 40])
def test_a_link_into_the_middle_of_a_record(end: int) -> None:
    """Found by tests/fuzz (wal_log, seed 1, case 3673): right checksums, and the link says that the segment before
    ended inside one of its records, or behind its file. recover() tried for ever."""
    files, _, paths = small_log()

    def mislead(data: bytearray) -> None:
        number = int(paths[1].removeprefix("wal/").removesuffix(".wal"))
        struct.pack_into("<Q", data, DATA_START + HEADER_SIZE + 8, end)
        header = crc32c(struct.pack("<QQ", number, DATA_START) + data[DATA_START + 4 : DATA_START + 12])
        struct.pack_into("<I", data, DATA_START, crc32c(data[DATA_START + 16 : DATA_START + 32], header))

    with pytest.raises(nokv.Corruption) as caught:
        recover(with_bytes(files, paths[1], mislead), "wal")
    assert (caught.value.path, caught.value.offset, caught.value.found) == (paths[1], DATA_START, end)


@pytest.mark.parametrize(
    ("sequence", "operations"), [(0, 0), (0, 1), (2**56 - 1, 2), (2**56, 1), (2**56 + 1, 0), (2**64 - 1, 1)]
)
def test_a_batch_with_an_impossible_sequence(sequence: int, operations: int) -> None:
    """Right checksums: everything written after it would have been lost, or gone unnoticed."""
    files = CrashFiles()
    db = nokv.open("db", files=files, executor=StepExecutor(inline=True))
    db.put(b"a", b"1")
    batch = WriteBatch()
    batch.put_many([(b"b%d" % number, b"2") for number in range(operations)])
    position = db.wal.append(TYPE_BATCH, batch.payload(sequence))
    for read_only in (True, False):
        with pytest.raises(nokv.Corruption, match="write batch has an impossible sequence") as caught:
            nokv.open("db", files=files.crash_clone("process"), executor=StepExecutor(inline=True), read_only=read_only)
        path = f"db/wal/{segment_name(position.segment)}"
        assert (caught.value.path, caught.value.offset, caught.value.found) == (path, position.offset, sequence)
    assert "impossible sequence" in nokv.check("db", files=files.crash_clone("process")).problems[0]
    repaired = files.crash_clone("process")
    nokv.repair("db", files=repaired)
    with nokv.open("db", files=repaired, executor=StepExecutor(inline=True)) as found:
        assert dict(found.scan()) == {b"a": b"1"}
    db.close()


def test_truncated_files_are_refused_or_read() -> None:
    files, records, paths = small_log()
    for path in paths:
        for size in range(0, files.size(path), 61):

            def cut(data: bytearray, size: int = size) -> None:
                del data[size:]

            try:
                found = contents(Wal(with_bytes(files, path, cut), "wal", 1024))
                # An empty newest file is what a process leaves that died while it made one.
                assert found == records or (size == 0 and path == max(paths) and found == records[: len(found)])
            except nokv.Corruption as error:
                assert error.path


def test_a_segment_stays_until_everybody_is_past_it(place: tuple[Files, str]) -> None:
    """ENG-05"""
    files, directory = place
    wal = Wal(files, directory, 1024, ("engine", "raft"))
    for _ in range(60):
        wal.append(16, b"x" * 100)
    everything = wal.segments()
    assert len(everything) > 4
    wal.retain("engine", None)
    assert wal.segments() == everything  # raft has not said anything yet
    wal.sync()
    wal.retain("raft", everything[2])
    assert wal.segments() == everything[2:]
    wal.retain("raft", None)
    assert wal.segments() == [wal.active_segment]
    assert [name for name in files.listdir(directory) if name.endswith(".wal")] == [segment_name(wal.active_segment)]
    wal.close()


def test_recycled_segments_never_show_their_former_life(place: tuple[Files, str]) -> None:
    files, directory = place
    wal = Wal(files, directory, 1024, recycle_syncs=1)
    for n in range(400):
        wal.append(16, b"%d" % n)
        if n % 8 == 0:
            wal.sync()
        if n % 20 == 0:
            wal.retain("raft", wal.active_segment)
    assert wal.stats()["recycled"] > 0
    expected = contents(wal)
    wal.close()
    assert contents(Wal(files, directory, 1024)) == expected
    assert expected == [(16, b"%d" % n) for n in range(400 - len(expected), 400)]


def test_concurrent_callers_share_a_sync(tmp_path: Path) -> None:
    wal = Wal(OsFiles(), str(tmp_path / "wal"))

    def work(number: int) -> None:
        for n in range(20):
            wal.append(16 + number, b"%d" % n)
            wal.sync()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(contents(wal)) == 120
    assert wal.stats()["syncs"] <= 120
    for number in range(6):
        assert contents(wal, {16 + number}) == [(16 + number, b"%d" % n) for n in range(20)]
    wal.close()


def test_after_a_failed_sync_nothing_is_taken_any_more() -> None:
    """R2f: never retried as if nothing had happened."""
    inner = CrashFiles()
    files = FaultFiles(inner)
    wal = Wal(files, "wal", 4096)
    wal.append(16, b"kept")
    wal.sync()
    wal.append(16, b"in doubt")
    files.fail("sync", error=errno.EIO, path=".wal")
    with pytest.raises(nokv.ReadOnly) as caught:
        wal.sync()
    assert "Input/output error" in caught.value.cause
    files.heal()
    for attempt in (wal.sync, lambda: wal.append(16, b"no")):
        with pytest.raises(nokv.ReadOnly):
            attempt()
    wal.close()
    found = contents(Wal(inner.crash_clone("drop"), "wal", 4096))
    assert found == [(16, b"kept")]


def test_no_space_for_a_segment_changes_nothing() -> None:
    files = FaultFiles(CrashFiles())
    wal = Wal(files, "wal", 1024)
    files.fail("open_log", error=errno.ENOSPC, times=None)
    with pytest.raises(OSError, match="No space"):
        for _ in range(100):
            wal.append(16, b"x" * 50)
    files.heal()
    before = len(contents(wal))
    wal.append(16, b"y")
    assert len(contents(wal)) == before + 1
    wal.close()
    with pytest.raises(nokv.Closed):
        wal.append(16, b"z")


def test_a_background_step_keeps_ahead_of_the_writer(place: tuple[Files, str]) -> None:
    files, directory = place
    wal = Wal(files, directory, 16 << 20)
    steps, number, appended = 0, 0, []
    while wal.active_segment < 4:
        payload = b"%08d" % number * 1000
        wal.append(16, payload)
        appended.append(payload)
        number += 1
        assert wal.active is not None
        if wal.active.end > wal.soft_limit:
            before = wal.active_segment
            wal.attend()
            steps += 1
            assert wal.active_segment == before and wal.active.end <= wal.soft_limit
            assert wal._spare is not None and (not wal._spare.mapped or wal._spare.ready > 0)
    assert wal.stats()["rotations"] == 3
    assert steps == 3  # one per segment: never one per record
    assert [payload for _, payload in contents(wal)] == appended
    wal.close()
    again = Wal(files, directory, 16 << 20)
    assert [payload for _, payload in contents(again)] == appended
    again.close()


@given(
    steps=st.lists(
        st.one_of(st.binary(max_size=3000), st.sampled_from(["background", "for somebody"])), min_size=1, max_size=60
    ),
    segment_bytes=st.sampled_from([4096, 20000, 1 << 20]),
    seed=st.integers(0, 1 << 32),
)
@settings(max_examples=80, deadline=None)
def test_what_any_kind_of_sync_covered_survives_power_loss(
    steps: list[bytes | str], segment_bytes: int, seed: int
) -> None:
    """A background sync of a busy log asks for the range that was written since the sync before, and for no more."""
    files = CrashFiles(seed=seed)
    wal = Wal(files, "wal", segment_bytes, much_bytes=2000)
    records, synced = [], 0
    for step in steps:
        if isinstance(step, str):
            wal.sync(background=step == "background")
            synced = len(records)
        else:
            wal.append(16, step)
            records.append((16, step))
    modes: tuple[CrashMode, ...] = ("drop", "torn", "random")
    for mode in modes:
        again = Wal(files.crash_clone(mode, seed=seed), "wal", segment_bytes)
        found = contents(again)
        assert found == records[: len(found)] and len(found) >= synced
        again.close()


def test_after_a_background_sync_a_busy_writer_goes_on_in_another_page(tmp_path: Path) -> None:
    directory = str(tmp_path / "wal")
    wal = Wal(OsFiles(), directory, 16 << 20, much_bytes=10_000)
    records = []
    for number in range(600):
        record = (16, b"%d" % number * 40)
        wal.append(*record)
        records.append(record)
        if number % 7 == 0:
            active = wal.active
            assert active is not None
            much, end = active.end - active.synced >= 10_000, active.end
            wal.sync(background=True)
            if active.mapped:
                assert (active.synced % mmap.PAGESIZE == 0) == (much or end % mmap.PAGESIZE == 0)
                assert active.synced >= end  # and the next record lies behind it
    assert contents(wal) == records
    wal.close()
    again = Wal(OsFiles(), directory, 16 << 20)
    assert contents(again) == records
    again.close()


@pytest.mark.parametrize("appends_per_sync", [10_000, 20])
def test_a_segment_is_filled_with_zeros_ahead_of_a_rapid_writer_only(tmp_path: Path, appends_per_sync: int) -> None:
    """Whoever syncs often would write all of a large page each time."""
    directory = str(tmp_path / "wal")
    made: list[bool] = []

    class Watched(Wal):
        def prepare(self, *, rapid: bool = False) -> None:
            made.append(rapid)
            super().prepare(rapid=rapid)
            spare = self._spare
            assert spare is not None
            content = Path(f"{directory}/{segment_name(spare.number)}").read_bytes()
            assert len(content) == spare.capacity
            assert any(content[:DATA_START]) and not any(content[DATA_START:])

    wal = Watched(OsFiles(), directory, 4 << 20)
    appended = []
    for number in range(9_000):
        payload = b"%06d" % number * 150
        wal.append(16, payload)
        appended.append(payload)
        assert wal.active is not None
        if wal.active.end > wal.soft_limit:
            wal.attend()
        if number % appends_per_sync == 0:
            wal.sync()
    assert wal.stats()["rotations"] >= 3
    assert made == [appends_per_sync == 10_000] * len(made) and len(made) >= 3
    assert [payload for _, payload in contents(wal)] == appended
    wal.close(sync=False)
    wal = Wal(OsFiles(), directory, 4 << 20)
    assert [payload for _, payload in contents(wal)] == appended
    wal.close()


def test_zeros_are_not_waited_for(tmp_path: Path) -> None:
    """Whoever needs the segment that is being filled gets it as it is."""
    directory = str(tmp_path / "wal")
    wal = Wal(OsFiles(), directory, 4 << 20)
    while wal._segments[-1].capacity < 4 << 20:
        wal.append(16, b"x" * 1000)
    ends = []
    for rapid, waiting in ((False, 0), (True, 0), (True, 1)):
        wal.waiting = waiting
        wal.prepare(rapid=rapid)
        wal.waiting = 0
        assert wal._spare is not None
        ends.append(OsFiles().data_end(f"{directory}/{segment_name(wal._spare.number)}"))
        before = wal.active_segment
        while wal.active_segment == before:
            wal.append(16, b"x" * 1000)
        assert wal.waiting == 0
    wal.close()
    if ends[0] == 4 << 20:
        pytest.skip("this file system does not tell what was written from what is reserved")
    assert ends[1] == 4 << 20 and ends[2] == ends[0]


def test_no_page_of_the_next_record_is_write_protected_after_a_sync(tmp_path: Path) -> None:
    """The store that meets one waits for the file system, and every thread waits for it."""
    wal = Wal(OsFiles(), str(tmp_path / "wal"), 16 << 20)
    for background in (True, False, True):
        met = []  # page faults of the first append after each sync: one may be the allocator's, not all
        for _ in range(3):
            for number in range(4000):
                wal.append(16, b"%d" % number * 30)
                assert wal.active is not None
                if wal.active.end > wal.soft_limit:
                    wal.attend()
            wal.sync(background=background)
            payload = b"x" * 50
            faults = [resource.getrusage(resource.RUSAGE_THREAD).ru_minflt for _ in range(5)]
            wal.append(16, payload)
            met.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - faults[-1])
        assert min(met) == 0, met
    wal.close()


def test_a_clean_log_is_opened_without_a_change() -> None:
    """Neither an operation on the disk nor a new segment, however often."""
    files = CrashFiles()
    wal = Wal(files, "wal", 4096)
    wal.append(16, b"kept")
    wal.close()
    before, names = files.operation_count, files.listdir("wal")
    for _ in range(5):
        wal = Wal(files, "wal", 4096)
        assert wal.settled and contents(wal) == [(16, b"kept")]
        wal.sync()
        wal.close()
    assert (files.operation_count, files.listdir("wal")) == (before, names)
    wal = Wal(files, "wal", 4096)
    assert wal.append(16, b"more").segment == 1
    wal.sync()
    wal = Wal(files.crash_clone("drop"), "wal", 4096)
    assert contents(wal) == [(16, b"kept"), (16, b"more")]


def test_a_log_does_not_go_on_before_something_that_is_not_zero() -> None:
    """A record behind a hole, of a power loss, must not come back when the hole is filled."""
    files = CrashFiles()
    wal = Wal(files, "wal", 4096)
    positions = [wal.append(16, b"%d" % n * 20) for n in range(6)]
    path = "wal/" + segment_name(1)

    def lose(data: bytearray) -> None:
        data[positions[2].offset : positions[3].offset] = bytes(positions[3].offset - positions[2].offset)

    torn = with_bytes(files, path, lose)
    again = Wal(torn, "wal", 4096)
    assert len(contents(again)) == 2
    assert again.append(16, b"2" * 20).segment == 2  # of the same size as the one that was lost
    assert [payload[:1] for _, payload in contents(again)] == [b"0", b"1", b"2"]
    again.sync()
    assert len(contents(Wal(torn.crash_clone("drop"), "wal", 4096))) == 3


@pytest.mark.parametrize("eager", [False, True])
def test_what_a_killed_process_left_is_synced_by_the_open_or_by_the_next_sync(eager: bool) -> None:
    files = CrashFiles()
    wal = Wal(files, "wal", 1024)
    wal.append_many([(16, b"%02d" % n * 20) for n in range(60)])  # several segments, none of them synced
    found = files.crash_clone("process")
    again = Wal(found, "wal", 1024, sync_found=eager)
    assert again.settled is eager
    expected = contents(again)
    assert len(expected) == 60
    if not eager:
        assert len(contents(Wal(found.crash_clone("drop"), "wal", 1024))) < 60
        again.append(16, b"new")
        again.sync()
        expected.append((16, b"new"))
    assert contents(Wal(found.crash_clone("drop"), "wal", 1024)) == expected


@pytest.mark.parametrize("then", CRASH_MODES)
def test_a_crash_while_leftovers_are_removed_leaves_the_log_in_one_piece(then: CrashMode) -> None:
    """Each leftover names the segment before it: were an older one gone first, the rest would look like a log of its
    own."""
    files = CrashFiles()
    wal = Wal(files, "wal", 1024, ("test",), sync_found=False)
    wal.append(16, b"kept")
    wal.sync()
    wal.append_many([(16, b"x" * 900)] * 4)
    lost = files.crash_clone("drop", seed=1)  # headers of the next segments are on disk, nothing else of them is
    whole = lost.crash_clone("keep")
    Wal(whole, "wal", 1024, ("test",), sync_found=False)
    removals = [op for op in whole.operations if op.kind == "remove"]
    assert len(removals) >= 3 and not any(op.kind == "open_log" for op in whole.operations)
    for at in range(1, whole.operation_count + 1):
        image = lost.crash_clone("keep")
        image.crash_at = at
        with pytest.raises(CrashPoint):
            Wal(image, "wal", 1024, ("test",), sync_found=False)
        for seed in range(10):
            again = Wal(image.crash_clone(then, seed=seed), "wal", 1024, ("test",))
            assert contents(again) == [(16, b"kept")], (at, seed)


def test_a_segment_that_was_passed_by_is_not_appended_to() -> None:
    files = CrashFiles()
    wal = Wal(files, "wal", 1024)
    wal.append(16, b"old")
    wal.close()
    wal = Wal(files, "wal", 1024, first_needed=2)
    assert wal.append(16, b"new").segment == 2


def test_a_switch_without_memory_is_made_later() -> None:
    """The segments and the active one agree whatever fails: or the next link says that another segment ended there."""

    class Poor(Wal):
        left = -1

        def _soft_limit(self, writer: SegmentWriter) -> int:
            self.left -= 1
            if self.left == 0:
                raise MemoryError
            return super()._soft_limit(writer)

    for turn in range(1, 4):
        files = CrashFiles()
        log = Poor(files, "wal", 1024)
        log.left = turn
        wanted, refused = [], 0
        for n in range(30):
            try:
                log.append(16, b"%03d" % n * 50)
                wanted.append(b"%03d" % n * 50)
            except MemoryError:
                refused += 1
        assert refused == 1
        log.sync()
        for image in (files.crash_clone("drop"), files.crash_clone("process")):
            assert [payload for _, _, payload in Wal(image, "wal", 1024).replay({16})] == wanted
