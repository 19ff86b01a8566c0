"""The picker's decisions, one line each. Tables are written number:smallest-largest*megabytes."""

from __future__ import annotations

import pytest

from nokv.engine.compaction.picker import level_bytes_max, pick_compaction, pick_everything
from nokv.engine.manifest.edit import FileMeta
from nokv.engine.sst.options import LsmOptions

OPTIONS = LsmOptions(l0_files_trigger=4, level_base_bytes=10 << 20, level_growth=10, levels_max=4)


def table(text: str, level: int) -> FileMeta:
    number, rest = text.split(":")
    keys, _, megabytes = rest.partition("*")
    smallest, largest = keys.split("-")
    return FileMeta(
        number=int(number),
        level=level,
        size=int(megabytes or 1) << 20,
        crc32c=0,
        entries=1,
        smallest=smallest.encode(),
        largest=largest.encode(),
        min_sequence=int(number),
        max_sequence=int(number),
    )


def levels(*rows: str) -> list[list[FileMeta]]:
    found = [[table(t, level) for t in row.split()] for level, row in enumerate(rows)]
    return [*found, *([] for _ in range(4 - len(found)))]


L0 = "4:a-m 3:c-f 2:a-b 1:g-k"


@pytest.mark.parametrize(
    ("rows", "turns", "expected"),
    [
        # nothing to do
        ((), {}, None),
        (("3:a-m 2:a-b 1:g-k",), {}, None),
        (("1:a-m", "2:a-z*10", "3:a-z*100"), {}, None),
        # level 0 by count: all of it, with what it overlaps below; deletes go if nothing lies deeper
        ((L0,), {}, ([4, 3, 2, 1], 1, True, False, False)),
        ((L0, "5:a-b 6:l-n 7:o-z"), {}, ([4, 3, 2, 1, 5, 6], 1, True, False, False)),
        ((L0, "5:a-b", "8:x-z"), {}, ([4, 3, 2, 1, 5], 1, True, False, False)),
        ((L0, "5:a-b", "8:e-f"), {}, ([4, 3, 2, 1, 5], 1, False, False, False)),
        # what the tables below add to the range counts too
        ((L0, "5:a-b 6:l-t", "8:s-u"), {}, ([4, 3, 2, 1, 6, 5], 1, False, False, False)),
        # a level by bytes: one table and what it overlaps; in turns
        (("", "1:a-c*6 2:d-f*6", "3:b-e 4:f-g"), {}, ([1, 3], 2, True, False, True)),
        (("", "1:a-c*6 2:d-f*6", "3:b-e 4:f-g"), {1: b"c"}, ([2, 3, 4], 2, True, False, True)),
        (("", "1:a-c*6 2:d-f*6", "3:b-e 4:f-g"), {1: b"f"}, ([1, 3], 2, True, False, True)),
        (("", "1:a-c*6 2:d-f*6", "3:b-e", "9:a-a"), {}, ([1, 3], 2, False, False, True)),
        # nothing below it: it only changes its level
        (("", "1:a-c*6 2:d-f*6", "4:g-h"), {}, ([1], 2, True, True, True)),
        # the level furthest above its bound goes first
        (("4:a-m 3:c-f 2:a-b 1:g-k 9:a-b", "5:a-c*11", ""), {}, ([4, 3, 2, 1, 9, 5], 1, True, False, False)),
        ((L0, "5:a-c*30", ""), {}, ([5], 2, True, True, True)),
        (("", "5:a-c*11", "6:a-z*200"), {}, ([6], 3, True, True, True)),
        # the last level has no bound
        (("", "", "", "6:a-z*999999"), {}, None),
    ],
)
def test_pick(rows: tuple[str, ...], turns: dict[int, bytes], expected: tuple[object, ...] | None) -> None:
    found = pick_compaction(levels(*rows), OPTIONS, turns)
    if expected is None:
        assert found is None
        return
    assert found is not None
    numbers, level, bottom, move, compress = expected
    assert isinstance(numbers, list)
    assert sorted(f.number for f in found.inputs) == sorted(numbers)
    assert (found.output_level, found.bottom, found.move, found.compress) == (level, bottom, move, compress)


def test_bounds_grow() -> None:
    assert [level_bytes_max(level, OPTIONS) >> 20 for level in (1, 2, 3)] == [10, 100, 1000]


def test_everything_goes_to_the_deepest_level_in_use() -> None:
    assert pick_everything(levels()) is None
    shallow = pick_everything(levels("1:a-b"))
    assert shallow is not None
    assert (len(shallow.inputs), shallow.output_level, shallow.bottom) == (1, 1, True)
    deep = pick_everything(levels("1:a-b", "", "2:a-b 3:c-d"))
    assert deep is not None
    assert (len(deep.inputs), deep.output_level, deep.bottom) == (3, 2, True)


def test_no_levels() -> None:
    assert pick_compaction([], OPTIONS) is None
