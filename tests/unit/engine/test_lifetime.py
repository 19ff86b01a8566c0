"""The interpreter never dies: whatever is used after its end, in another thread, after a fork, from inside a callback
(RELIABILITY R6). Rows of the matrix run in a process of their own: lifetime_cells.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nokv
from nokv._ext import command, mvcc
from nokv._ext.batch import WriteBatch, decode_batch
from nokv._ext.wal import SegmentReader, SegmentWriter
from nokv.errors import BytesRequired, Corruption, UsageError
from tests.sanitizer import without_leaks
from tests.unit.engine.lifetime_cells import CELLS

STATES = [
    "open",
    "closed",
    "closed elsewhere",
    "closing meanwhile",
    "dropped",
    "children closed",
    "forked",
    "exit",
    "stress",
]


@pytest.mark.parametrize("state", STATES)
def test_every_operation_ends_in_an_answer_or_a_typed_error(state: str) -> None:
    program = Path(__file__).with_name("lifetime_cells.py")
    environment = {
        **(without_leaks() if state in ("dropped", "exit") else os.environ),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    done = subprocess.run(
        [sys.executable, str(program), state], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 0, f"{state}: {done.returncode}\n{done.stdout[-500:]}\n{done.stderr[-3000:]}"
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == list(CELLS)


def test_the_matrix_has_its_size() -> None:
    assert len(CELLS) * len(STATES) >= 300


class Naughty(bytes):
    """A key that changes its list while it is read."""

    keys: list[bytes]

    def __bytes__(self) -> bytes:
        self.keys.clear()
        return b"a"


def test_get_many_of_a_list_that_shrinks_meanwhile(tmp_path: Path) -> None:
    with nokv.open(str(tmp_path / "db")) as db:
        db.put(b"a", b"1")
        key = Naughty(b"a")
        key.keys = [key, *(b"a" for _ in range(1000))]
        assert db.get_many(key.keys) == [b"1"] * 1001


@pytest.mark.parametrize(
    "call",
    [
        lambda: command.pack_gets([None]),
        lambda: command.pack_deletes([None]),
        lambda: command.pack_puts([(None, b"v")]),
        lambda: command.pack_batch(1, 1, [(1, None)]),
        lambda: command.pack_results([([(None, b"")], False, False)]),
        lambda: command.pack_results([([(b"k", None)], False, False)]),
        lambda: mvcc.pack_pairs_for_digest([(None, b"v")]),
        lambda: mvcc.resolve(b"k", [(b"k", None)], lambda key: None),
        lambda: mvcc.scan_visible(iter([]), iter([(None, b"v")]), None, 1),
        lambda: mvcc.scan_visible(iter([(None, b"v")]), iter([]), None, 1),
    ],
)
def test_none_is_no_bytes(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BytesRequired):
        call()


def test_committed_many_refuses_none(tmp_path: Path) -> None:
    with nokv.open(str(tmp_path / "db")) as db, pytest.raises(BytesRequired):
        mvcc.committed_many(db, 0, [None], 1, 1, 2)


class Plain:
    """A log file that is not mapped."""

    capacity = 4096

    def __init__(self) -> None:
        self.data = bytearray(4096)

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data

    def close(self) -> None:
        pass


def test_a_record_without_payload_is_no_null_copy() -> None:  # found by UBSan
    file = Plain()
    writer = SegmentWriter(file, 1)
    assert writer.append(1, b"") == 0
    assert SegmentReader(bytes(file.data), 1).records(None, 4096, 9) == [(0, 1, b"")]
    assert not writer.fits((1 << 64) - 1)


def test_checksums_of_a_record_beyond_a_cut_file() -> None:
    file = Plain()
    SegmentWriter(file, 1).append(1, b"x" * 2000)
    reader = SegmentReader(bytes(file.data[:32]), 1)
    assert reader.state() == "bad header"
    assert len(reader.checksums()) == 2
    assert SegmentReader(b"", 1).checksums() == (None, None)


def test_a_batch_gives_its_payload_without_touching_it() -> None:
    batch = WriteBatch()
    batch.put(b"k", b"v")
    assert decode_batch(batch.payload(7))[0] == 7
    assert batch.payload(9)[12:] == batch.payload(7)[12:]


@pytest.mark.parametrize("seed", range(20))
def test_hostile_bytes_end_in_typed_errors(seed: int) -> None:
    import random

    dice = random.Random(seed)
    batch = WriteBatch()
    batch.put_many([(dice.randbytes(dice.randrange(40)), dice.randbytes(dice.randrange(200))) for _ in range(9)])
    group = command.pack_writes([(b"k%d" % i, b"v" * i) for i in range(9)])
    good = {
        decode_batch: batch.payload(1),
        command.unpack_writes: group,
        command.unpack_results: command.pack_results([None, b"v", 3, ([(b"k", b"v")], True, False)]),
        command.unpack_batch: command.pack_batch(1, 2, [(3, group)]),
        mvcc.decode_key: mvcc.encode_key(b"some key"),
        mvcc.split_versioned_key: mvcc.versioned_key(b"some key", 5),
        mvcc.decode_write: mvcc.encode_write(1, 5, b"value"),
        mvcc.lock_start_ts: b"\x11" + bytes(8),
    }
    for parse, data in good.items():
        for _ in range(200):
            bad = bytearray(data)
            for _ in range(dice.randrange(1, 4)):
                bad[dice.randrange(len(bad))] = dice.randrange(256)
            bad = bad[: dice.randrange(len(bad) + 1)] if dice.random() < 0.5 else bad
            if dice.random() < 0.5 and parse in (command.unpack_writes, command.unpack_results, command.unpack_batch):
                from nokv._ext.crc32c import crc32c

                bad[-4:] = crc32c(bytes(bad[:-4])).to_bytes(4, "little")  # past the checksum, into the parser
            try:
                parse(bytes(bad))
            except (Corruption, UsageError):
                pass
