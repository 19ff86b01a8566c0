"""The plain-file log: crashes at every operation, torn tails, corrupt middles, failing disks. RAFT-14, R2."""

from __future__ import annotations

import errno
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nokv._ext.crc32c import crc32c
from nokv.env.files import OsFiles
from nokv.env.ports import Files
from nokv.errors import Closed, Corruption, Locked, ReadOnly, UsageError
from nokv.multiraft.filelog import FILE_NAME, RECORD_BASE, RECORD_SYNCED, FileLog, LogImage, decode_file, encode_file
from nokv.raft.errors import SnapshotOutOfDate
from nokv.raft.types import ConfState, Entry, HardState, RaftSnapshot, SnapshotMetadata
from nokv.testing.files import CRASH_MODES, CrashFiles, CrashMode, CrashPoint, FaultFiles

BIG = 1 << 30
CONF = ConfState((1, 2, 3))
HEADER, HEAD = 32, 17
Image = tuple[HardState, ConfState, RaftSnapshot, int, int, list[Entry]]


def entries(first: int, last: int, term: int, size: int = 8) -> list[Entry]:
    return [Entry(term, i, data=bytes([i % 251]) * size) for i in range(first, last + 1)]


def image(log: FileLog) -> Image:
    state, conf = log.initial_state()
    first, last = log.first_index(), log.last_index()
    held = log.entries(first, last + 1, BIG) if last >= first else []
    return (
        HardState(state.term, state.vote, state.commit),
        conf,
        log.stored_snapshot(),
        first,
        log.term(first - 1),
        held,
    )


def snapshot(index: int, term: int, data: bytes = b"") -> RaftSnapshot:
    return RaftSnapshot(SnapshotMetadata(index, term, CONF), data)


# -- the page docs/formats/raft_file_log.md, word for word ------------------------------------------------------------
def record(position: int, kind: int, synced: int, payload: bytes) -> bytes:
    rest = struct.pack("<IBQ", len(payload), kind, synced) + payload
    return struct.pack("<I", crc32c(struct.pack("<Q", position) + rest)) + rest


def header(base_end: int, group_id: int = 1, version: int = 1) -> bytes:
    head = b"NoKVRLOG" + struct.pack("<IQQ", version, group_id, base_end)
    return head + struct.pack("<I", crc32c(head))


def golden() -> bytes:
    metadata = b"\x01\x02\x00\x01\x05\x03\x03\x01\x02\x03\x00\x00\x00\x00"  # a reset mark of group 1: raft_log.md
    base = struct.pack("<QQI", 4, 2, len(metadata)) + metadata + b"state"
    first = record(HEADER, RECORD_BASE, 0, base)
    second = record(HEADER + len(first), 16, 0, b"\x01\x01\x01\x03\x02\x05\x01\x02\x05\x00\x01x")
    body = first + second
    return header(HEADER + len(body)) + body


def test_golden_bytes() -> None:
    held = decode_file(golden(), 1)
    assert held.stored_snapshot == snapshot(5, 3, b"state")
    assert (held.first_index(), held.last_index(), held.term(4)) == (5, 5, 2)
    assert held.live_entries() == [Entry(2, 5, data=b"x")]
    assert held.hard_state == HardState(3, 2, 5)
    assert encode_file(held, 1) == golden()


# -- crashes ----------------------------------------------------------------------------------------------------------
class Driver:
    """A workload, and every state that may be found after a crash: what was durable, or anything written since."""

    def __init__(self, files: CrashFiles, seed: int) -> None:
        self.dice = random.Random(seed)
        self.files = files
        self.allowed: list[Image | None] = [None]  # None: nothing was there
        self.log = FileLog.open(files, "d/log")
        self.durable()

    def durable(self) -> None:
        self.allowed = [image(self.log)]

    def expect(self) -> Image:
        return image(self.log)

    def step(self) -> None:
        """One verb. What it may leave behind is noted before it begins."""
        dice, log = self.dice, self.log
        state = log.initial_state()[0]
        term = state.term + dice.choice((0, 0, 1)) or 1
        last = log.last_index()
        verb = dice.choice(("save", "save", "save", "compact", "snapshot"))
        state = HardState(term, dice.choice((1, 2)) if term > state.term else state.vote, state.commit)
        held = image(log)
        if verb == "save":
            first = dice.randrange(max(state.commit, log.first_index() - 1) + 1, last + 2)
            if log.term(first - 1) > term:
                first = last + 1
            added = entries(first, first + dice.randrange(4), term, dice.choice((0, 5, 700)))
            state.commit = dice.randrange(state.commit, added[-1].index + 1)
            after = (state, held[1], held[2], held[3], held[4], held[5][: first - held[3]] + added)
            self.allowed.append(after)
            sync = dice.random() < 0.5
            log.save(state, added, sync=sync)
            if sync:
                self.allowed = [after]
        elif verb == "compact" and state.commit > log.stored_snapshot().metadata.index:
            index = state.commit
            keep = max(index - dice.randrange(3), log.first_index() - 1)
            made = RaftSnapshot(SnapshotMetadata(index, log.term(index), CONF), b"s%d" % index)
            cut = held[5][keep + 1 - held[3] :]
            self.allowed.append((held[0], CONF, made, keep + 1, log.term(keep), cut))
            log.compact(made, keep)
            self.allowed = self.allowed[-1:]
        elif verb == "snapshot":
            index = last + 3
            made = snapshot(index, term, b"installed")
            state.commit = index
            self.allowed.append((state, CONF, made, index + 1, term, []))
            log.save(state, [], made, sync=True)
            self.allowed = self.allowed[-1:]


def run_until_crash(seed: int, crash_at: int | None, steps: int = 12) -> tuple[CrashFiles, list[Image | None]]:
    files = CrashFiles(seed=seed)
    files.makedirs("d")
    files.crash_at = crash_at
    driver: Driver | None = None
    try:
        driver = Driver(files, seed)
        for _ in range(steps):
            driver.step()
    except CrashPoint:
        pass
    return files, [None] if driver is None else driver.allowed


@pytest.mark.parametrize("mode", CRASH_MODES)
@pytest.mark.parametrize("seed", range(3))
def test_crash_at_every_operation(mode: CrashMode, seed: int) -> None:  # R2: and again inside the recovery
    total = run_until_crash(seed, None)[0].operation_count
    assert total > 30
    for crash_at in range(2, total + 1):
        files, allowed = run_until_crash(seed, crash_at)
        for again in range(1, 12):
            recovering = files.crash_clone(mode, seed=crash_at)
            recovering.crash_at = again
            try:
                log = FileLog.open(recovering, "d/log")
            except CrashPoint:
                found = FileLog.open(recovering.crash_clone(mode, seed=again), "d/log")
                check(image(found), allowed, f"seed {seed} mode {mode} crash at {crash_at}, then {again}")
                continue
            check(image(log), allowed, f"seed {seed} mode {mode} crash at {crash_at}")
            break
        else:
            raise AssertionError("recovery takes more operations than expected")


EMPTY: Image = (HardState(), ConfState(), RaftSnapshot(SnapshotMetadata()), 1, 0, [])


def check(found: Image, allowed: list[Image | None], where: str) -> None:
    wanted = [EMPTY if one is None else one for one in allowed]
    if found in wanted:
        return
    # Of several unsynced saves a prefix survives; of the last one, maybe only some of its records. (One record each
    # here, so that a prefix of the saves is all there is.)
    raise AssertionError(f"{where}: found {found}\nallowed {wanted}")


def test_what_a_killed_process_left_is_durable_before_anybody_builds_on_it() -> None:
    files = CrashFiles(seed=1)
    log = FileLog.open(files, "log")
    log.save(HardState(1, 1, 0), entries(1, 3, 1), sync=False)
    files.kill()
    files = files.crash_clone("process")
    assert FileLog.open(files, "log").last_index() == 3
    files.kill()
    assert FileLog.open(files.crash_clone("drop"), "log").last_index() == 3


def test_a_lost_sync_mark_is_no_damage() -> None:
    """Found by the simulator: a record called the mark before it durable, which lay across two sectors."""
    for size in range(380, 460):
        files = CrashFiles(seed=size)
        log = FileLog.open(files, "log")
        log.save(HardState(1, 1, 0), entries(1, 1, 1, size), sync=True)
        log.save(None, entries(2, 2, 1), sync=False)
        for seed in range(6):
            assert FileLog.open(files.crash_clone("random", seed=seed), "log").last_index() in (1, 2)


def test_a_sync_with_nothing_new_writes_nothing() -> None:
    files = CrashFiles(seed=1)
    log = FileLog.open(files, "log")
    log.save(HardState(1, 1, 0), entries(1, 1, 1), sync=True)
    size = files.size("log/raft.log")
    log.sync()
    log.sync()
    assert files.size("log/raft.log") == size


# -- damage -----------------------------------------------------------------------------------------------------------
def written(home: Path) -> tuple[Path, list[int], Image]:
    """A closed log of some synced records; where each record of it begins."""
    log = FileLog.open(OsFiles(), str(home))
    log.save(HardState(2, 1, 0), entries(1, 3, 2), sync=True)
    log.compact(snapshot(3, 2, b"state"), 2)
    log.save(HardState(2, 1, 4), entries(4, 5, 2), sync=True)
    log.save(HardState(3, 2, 4), entries(5, 6, 3), sync=True)
    held = image(log)
    log.close()
    path = home / FILE_NAME
    data, position, starts = path.read_bytes(), HEADER, []
    while position < len(data):
        starts.append(position)
        position += HEAD + struct.unpack_from("<I", data, position + 4)[0]
    assert position == len(data)
    return path, starts, held


def test_no_flipped_byte_goes_unnoticed(tmp_path: Path) -> None:  # R3
    path, starts, held = written(tmp_path)
    pristine = path.read_bytes()
    outcomes = {"corruption": 0, "equal": 0}
    for position in range(len(pristine)):
        damaged = bytearray(pristine)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            log = FileLog.open(OsFiles(), str(tmp_path))
        except Corruption as error:
            assert error.path == str(path)
            assert error.offset >= 0
            outcomes["corruption"] += 1
            assert path.read_bytes() == damaged  # evidence is left as it was found
        else:
            assert image(log) == held, f"byte {position}"
            outcomes["equal"] += 1
            log.close()
    assert outcomes == {"corruption": starts[-1], "equal": len(pristine) - starts[-1]}  # all but the last sync mark


def test_a_cut_tail_is_a_crash_only_behind_the_last_sync(tmp_path: Path) -> None:
    path, _, held = written(tmp_path)
    files = OsFiles()
    log = FileLog.open(files, str(tmp_path))
    base_end = path.stat().st_size
    log.save(None, entries(7, 9, 3), sync=False)
    log.close(sync=False)
    whole = path.read_bytes()
    for cut in range(HEADER, len(whole)):
        path.write_bytes(whole[:cut])
        if cut < base_end:
            with pytest.raises(Corruption, match="cut short"):
                FileLog.open(files, str(tmp_path))
            continue
        reopened = FileLog.open(files, str(tmp_path))
        assert image(reopened) == held, f"cut at {cut}"
        reopened.close()


def test_a_hole_before_what_was_synced_is_no_crash(tmp_path: Path) -> None:
    path, starts, _ = written(tmp_path)
    data = bytearray(path.read_bytes())
    data[starts[2] : starts[3]] = bytes(starts[3] - starts[2])
    path.write_bytes(data)
    with pytest.raises(Corruption, match="says that it was durable") as caught:
        FileLog.open(OsFiles(), str(tmp_path))
    assert caught.value.offset == starts[2]
    assert "cannot vote" in caught.value.hint


def test_a_record_in_the_wrong_place_does_not_count(tmp_path: Path) -> None:
    """A block that was written elsewhere (or of an older file) has a good checksum, and the wrong position."""
    path, starts, _ = written(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: starts[-1]] + data[starts[2] :])
    held = decode_file(path.read_bytes(), 1)
    assert held.torn_at == starts[-1]


@pytest.mark.parametrize(
    ("payloads", "reason"),
    [
        ([(16, b"\x01\x00\x01\x01\x01\x07\x00\x00")], "entries from 7 on"),
        ([(16, b"\x01\x00\x01\x02\x02\x06\x00\x00\x02\x06\x00\x00")], "follows"),
        ([(16, b"\x01\x00\x01\x01\x01\x06\x00\x00")], "of term 1 follows"),
        ([(16, b"\x01\x00\x01\x01\x03\x05\x00\x00")], "committed and cannot change"),
        ([(17, b"\x01\x01\x02\x00\x05")], "term goes back"),
        ([(17, b"\x01\x01\x03\x01\x05")], "two votes"),
        ([(17, b"\x01\x01\x03\x02\x04")], "commit index goes back"),
        ([(17, b"\x01\x01\x03\x02\x09")], "before the commit index 9"),
        ([(17, b"\x01\x02\x03\x02\x05")], "another group"),
        ([(17, b"\x07")], "version"),
        ([(RECORD_SYNCED, b"x")], "sync mark with a payload"),
        ([(RECORD_BASE, b"")], "not the first record"),
    ],
)
def test_records_that_contradict_each_other(payloads: list[tuple[int, bytes]], reason: str) -> None:
    data = golden()
    for kind, payload in payloads:
        data += record(len(data), kind, 0, payload)
    with pytest.raises(Corruption, match=reason):
        decode_file(data, 1, "p")


def test_headers_that_are_not_ours() -> None:
    data = golden()
    cases = [
        (b"", "shorter"),
        (b"X" + data[1:], "not a raft log"),
        (header(len(data), version=2) + data[HEADER:], "unknown version"),
        (header(len(data), group_id=2) + data[HEADER:], "another group"),
        (header(len(data) + 1) + data[HEADER:], "cut short"),
        (header(HEADER), "cut short"),
        (data[:30] + b"\0\0" + data[32:], "header does not match"),
        (header(len(data)) + data[HEADER:][::-1], "base does not match"),
    ]
    for bad, reason in cases:
        with pytest.raises(Corruption, match=reason):
            decode_file(bad, 1, "p")
    ahead = golden() + record(len(golden()), RECORD_SYNCED, len(golden()) + 1, b"")
    with pytest.raises(Corruption, match="points behind itself"):
        decode_file(ahead, 1, "p")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_hostile_bytes(data: st.DataObject) -> None:
    """A typed error, or a log that holds together."""
    whole = bytearray(golden())
    for _ in range(data.draw(st.integers(0, 3))):
        kind = data.draw(st.sampled_from([16, 17, RECORD_BASE, RECORD_SYNCED, 99]))
        whole += record(len(whole), kind, data.draw(st.integers(0, 200)), data.draw(st.binary(max_size=30)))
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        held = decode_file(bytes(whole), 1, "p")
    except Corruption as error:
        assert error.path == "p"
        assert 0 <= error.offset <= len(whole)
    else:
        assert held.hard_state.commit <= held.last_index()
        assert decode_file(encode_file(held, 1), 1).live_entries() == held.live_entries()


# -- errors of the disk, and of the caller ----------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["write", "sync", "create", "rename", "sync_dir"])
def test_nothing_is_written_after_an_error(kind: str) -> None:
    inner = CrashFiles(seed=1)
    files = FaultFiles(inner)
    log = FileLog.open(files, "log")
    log.save(HardState(1, 1, 0), entries(1, 3, 1), sync=True)
    files.fail(kind, error=errno.ENOSPC if kind == "write" else errno.EIO)
    with pytest.raises(OSError):
        if kind in ("write", "sync"):
            log.save(HardState(2, 2, 0), entries(4, 4, 2), sync=True)
        else:
            log.compact(snapshot(1, 1), 1)
    for call in (lambda: log.save(None, entries(4, 4, 2), sync=True), log.sync, lambda: log.compact(snapshot(2, 1), 2)):
        with pytest.raises(ReadOnly):
            call()
    log.close()
    again = FileLog.open(inner.crash_clone("drop"), "log")
    assert again.entries(again.first_index(), 4, BIG) == entries(again.first_index(), 3, 1)
    assert again.initial_state()[0].vote == 1


def test_short_writes_are_finished() -> None:
    inner = CrashFiles(seed=1)
    files = FaultFiles(inner)
    log = FileLog.open(files, "log")
    files.fail("write", error="short", times=3)
    log.save(HardState(1, 1, 0), entries(1, 9, 1, 100), sync=True)
    assert FileLog.open(inner.crash_clone("drop"), "log").entries(1, 10, BIG) == entries(1, 9, 1, 100)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    files: Files = OsFiles()
    log = FileLog.open(files, str(tmp_path / "log"))
    with pytest.raises(Locked):
        FileLog.open(files, str(tmp_path / "log"))
    log.close()
    log.close()
    FileLog.open(files, str(tmp_path / "log")).close()
    with pytest.raises(Closed):
        log.sync()


def test_misuse() -> None:
    log = FileLog.open(CrashFiles(), "log")
    log.save(HardState(1, 1, 2), entries(1, 5, 1), sync=True)
    with pytest.raises(UsageError, match="snapshot ends at 2"):
        log.compact(snapshot(2, 1), 3)
    log.compact(snapshot(2, 1), 2)
    with pytest.raises(SnapshotOutOfDate):
        log.save(None, [], snapshot(2, 1), sync=True)
    assert log.syncs >= 3


def test_a_snapshot_source_answers_followers() -> None:
    log = FileLog.open(CrashFiles(), "log")
    log.initialise(snapshot(10, 2, b"old"))
    assert log.snapshot() == snapshot(10, 2, b"old")
    log.snapshot_source = lambda: snapshot(12, 2, b"new")
    assert log.snapshot() == snapshot(12, 2, b"new")
    assert log.stored_snapshot() == snapshot(10, 2, b"old")


def test_an_empty_image_round_trips() -> None:
    assert decode_file(encode_file(LogImage(), 9), 9).live_entries() == []
