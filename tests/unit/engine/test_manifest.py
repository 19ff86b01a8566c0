"""The manifest's bytes: what is written is read; what is damaged is named; what is torn is an ordinary crash."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nokv._ext.crc32c import crc32c
from nokv._ext.fields import FieldReader
from nokv.engine.manifest.edit import FileMeta, ValueFileMeta, VersionEdit, decode_edit, encode_edit
from nokv.engine.manifest.log import HEADER, ManifestWriter, read_current, read_manifest, write_current
from nokv.errors import Corruption, NotSupported
from nokv.testing.files import CrashFiles

NUMBERS = st.integers(0, 2**64 - 1)
SEQUENCES = st.integers(0, 2**56 - 1)


@st.composite
def metas(draw: st.DrawFn) -> FileMeta:
    low, high = sorted((draw(SEQUENCES), draw(SEQUENCES)))
    smallest, largest = sorted((draw(st.binary(min_size=1, max_size=40)), draw(st.binary(min_size=1, max_size=40))))
    return FileMeta(
        number=draw(NUMBERS),
        level=draw(st.integers(0, 15)),
        size=draw(NUMBERS),
        crc32c=draw(st.integers(0, 2**32 - 1)),
        entries=draw(NUMBERS),
        smallest=smallest,
        largest=largest,
        min_sequence=low,
        max_sequence=high,
        global_sequence=draw(st.none() | SEQUENCES),
    )


@st.composite
def value_metas(draw: st.DrawFn) -> ValueFileMeta:
    dead, live, frame = sorted((draw(NUMBERS), draw(NUMBERS), draw(NUMBERS)))
    return ValueFileMeta(
        number=draw(NUMBERS), size=frame, records=draw(st.integers(1, 2**64 - 1)), value_bytes=live, dead_bytes=dead
    )


EDITS = st.builds(
    VersionEdit,
    log_number=st.none() | NUMBERS,
    next_file_number=st.none() | NUMBERS,
    last_sequence=st.none() | NUMBERS,
    added=st.lists(metas(), max_size=4),
    removed=st.lists(NUMBERS, max_size=4),
    families=st.dictionaries(st.text(min_size=1, max_size=8), st.integers(0, 255), max_size=3),
    values_added=st.lists(value_metas(), max_size=3),
    values_removed=st.lists(NUMBERS, max_size=3),
    values_dead=st.dictionaries(NUMBERS, NUMBERS, max_size=3),
)


def written(edits: list[VersionEdit], number: int = 7) -> bytes:
    files = CrashFiles()
    writer = ManifestWriter(files, "m", number)
    for edit in edits:
        writer.append(edit)
    assert writer.size == files.size("m")
    return files.read_file("m")


def some_edits() -> list[VersionEdit]:
    meta = FileMeta(
        number=9, level=1, size=5, crc32c=1, entries=3, smallest=b"\0a", largest=b"\0z", min_sequence=1, max_sequence=4
    )
    return [
        VersionEdit(log_number=1, next_file_number=2, families={"plain": 0}),
        VersionEdit(added=[meta], last_sequence=4),
        VersionEdit(removed=[9], families={"x" * 600: 16}),
        VersionEdit(log_number=5),
    ]


@given(EDITS)
def test_edit_round_trip(edit: VersionEdit) -> None:
    assert decode_edit(encode_edit(edit)) == edit


@given(st.binary(max_size=80))
def test_edit_parser_takes_anything(data: bytes) -> None:  # R4
    for payload in (data, b"\1" + data + b"\xa5"):
        try:
            decode_edit(payload, path="m", offset=3)
        except Corruption as error:
            assert (error.path, error.offset) == ("m", 3)
        except NotSupported:
            assert payload[0] != 1


@given(EDITS, st.data())
def test_damaged_edits_do_not_crash_the_parser(edit: VersionEdit, data: st.DataObject) -> None:
    payload = bytearray(encode_edit(edit))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decode_edit(bytes(payload))
    except (Corruption, NotSupported):
        pass


@given(st.lists(EDITS, min_size=1, max_size=5))
def test_file_round_trip(edits: list[VersionEdit]) -> None:
    assert read_manifest(written(edits), "m", 7) == (edits, None)


@given(st.binary(max_size=200))
def test_file_parser_takes_anything(data: bytes) -> None:  # R4
    good = written([VersionEdit(log_number=1)])
    for content in (data, good + data):
        try:
            edits, torn = read_manifest(content, "m", 7)
        except Corruption as error:
            assert error.path == "m"
            assert 0 <= error.offset <= len(content)
        else:
            assert edits[0] == VersionEdit(log_number=1)
            assert torn is None or torn >= len(good)


def test_every_flipped_bit_is_found() -> None:  # R3
    edits = some_edits()
    good = written(edits)
    for place in range(len(good)):
        for bit in range(8):
            data = bytearray(good)
            data[place] ^= 1 << bit
            with pytest.raises((Corruption, NotSupported)) as caught:
                read_manifest(bytes(data), "m", 7)
            if isinstance(caught.value, Corruption):
                assert caught.value.path == "m"
                assert 0 <= caught.value.offset <= place


def test_cut_anywhere_is_a_prefix() -> None:  # R3
    edits = some_edits()
    ends = [len(written(edits[:n])) for n in range(len(edits) + 1)]
    good = written(edits)
    for size in range(len(good)):
        complete = sum(size >= end for end in ends[1:])
        if complete == 0:
            with pytest.raises(Corruption):
                read_manifest(good[:size], "m", 7)
            continue
        torn = None if size in ends else ends[complete]
        assert read_manifest(good[:size], "m", 7) == (edits[:complete], torn)


def test_a_sector_that_was_never_written_is_a_torn_tail() -> None:
    edits = some_edits()
    good = written(edits[:3])
    start = len(written(edits[:2]))
    for sector in range(0, len(good), 512):
        data = bytearray(good)
        low, high = max(sector, start), min(sector + 512, len(good))
        if low >= high:
            continue
        data[low:high] = bytes(high - low)
        assert read_manifest(bytes(data), "m", 7) == (edits[:2], start)
        # but not if a later record is there: this one was synced before that was written
        with pytest.raises(Corruption):
            read_manifest(bytes(data) + written(edits)[len(good) :], "m", 7)


def test_a_stale_record_of_another_place_or_file_is_refused() -> None:
    edits = some_edits()
    good = written(edits)
    second = len(written(edits[:1]))
    third = len(written(edits[:2]))
    with pytest.raises(Corruption):  # a record twice
        read_manifest(good[:third] + good[second:third], "m", 7)
    with pytest.raises(Corruption):  # another file's records under this one's header
        read_manifest(good[: HEADER.size] + written(edits, 8)[HEADER.size :], "m", 7)
    with pytest.raises(Corruption, match="another number"):
        read_manifest(good, "m", 8)


def test_a_newer_format_is_not_called_damaged() -> None:
    head = bytearray(written([VersionEdit()]))
    head[8] = 2
    head[28:32] = crc32c(bytes(head[:28])).to_bytes(4, "little")
    with pytest.raises(NotSupported, match="version 2"):
        read_manifest(bytes(head), "m", 7)


def test_current() -> None:
    files = CrashFiles()
    files.makedirs("d")
    write_current(files, "d", "d/CURRENT", "MANIFEST-000012")
    assert files.unsynced() == []
    assert read_current(files, "d/CURRENT") == "MANIFEST-000012"
    good = files.read_file("d/CURRENT")
    for place in range(len(good)):
        for bit in range(8):
            data = bytearray(good)
            data[place] ^= 1 << bit
            file = files.create("d/CURRENT")
            file.write(data)
            with pytest.raises(Corruption, match="CURRENT is damaged"):
                read_current(files, "d/CURRENT")
    with pytest.raises(FileNotFoundError):
        read_current(files, "d/nothing")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


@given(st.lists(NUMBERS | st.binary(max_size=300)), st.integers(0, 3), st.integers(0, 3))
def test_fields_are_read_as_they_were_written(items: list[int | bytes], before: int, after: int) -> None:
    packed = b"".join(_varint(i) if isinstance(i, int) else _varint(len(i)) + i for i in items)
    data = b"\xff" * before + packed + b"\xff" * after
    reader = FieldReader(data, "m", 5, before, before + len(packed))
    again = FieldReader(data, "m", 5, before, before + len(packed))
    for item in items:
        if isinstance(item, int):
            assert reader.varint() == again.varints(1)[0] == item
        else:
            inner = again.inner()
            assert reader.counted() == inner.take(inner.left()) == item
            inner.finish()
    reader.finish()
    again.finish()
    with pytest.raises(Corruption):  # not into what lies behind
        reader.varint()


@given(st.binary(max_size=40))
def test_no_bytes_make_a_field_reader_look_past_its_end(data: bytes) -> None:
    padded = data + b"\x01" * 20
    for step in ("varint", "counted", "inner"):
        reader = FieldReader(padded, "m", 5, 0, len(data))
        while reader.left():
            left = reader.left()
            try:
                getattr(reader, step)()
            except Corruption as error:
                assert (error.path, error.offset) == ("m", 5)
                break
            assert reader.left() < left


def test_a_number_above_64_bits_is_not_taken_for_a_short_one() -> None:
    for data, reason in (
        (b"\xff" * 9 + b"\x02", "64 bits"),
        (b"\xff" * 10 + b"\x01", "64 bits"),
        (b"\xff" * 3, "past the end"),
        (b"", "past the end"),
        (b"\x05ab", "past the end"),
    ):
        with pytest.raises(Corruption, match=reason):
            FieldReader(data, "m", 0).counted()
    with pytest.raises(ValueError, match="outside"):
        FieldReader(b"abc", "m", 0, 2, 4)
