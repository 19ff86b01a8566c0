"""How often the tests repeat themselves that can: `NOKV_TEST_COUNTS=few` (make test), `t1` (make test-full) or `t2`
(make test-long). Such tests carry `@pytest.mark.counted`."""

from __future__ import annotations

import os

SIZES = ("few", "t1", "t2")
SIZE = os.environ.get("NOKV_TEST_COUNTS", "few")
if SIZE not in SIZES:
    raise ValueError(f"NOKV_TEST_COUNTS={SIZE!r} is none of {', '.join(SIZES)}")


def count(few: int, t1: int, t2: int) -> int:
    return (few, t1, t2)[SIZES.index(SIZE)]
