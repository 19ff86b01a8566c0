"""One profile for every property test: no wall clock decides (a busy machine is no bug), and a failure prints what
replays it. How many examples it tries, NOKV_TEST_COUNTS says (tests/counts.py)."""

from __future__ import annotations

import pytest
from hypothesis import is_hypothesis_test, settings

from tests.counts import count

EXAMPLES = count(1, 5, 100)  # times those that the test asks for

settings.register_profile("nokv", deadline=None, print_blob=True)
settings.load_profile("nokv")


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        test = getattr(item, "obj", None)
        test = getattr(test, "__func__", test)
        if test is None or not is_hypothesis_test(test) or item.get_closest_marker("counted") is not None:
            continue
        item.add_marker("counted")
        if EXAMPLES > 1:
            asked = getattr(test, "_hypothesis_internal_use_settings", settings.default)
            test._hypothesis_internal_use_settings = settings(asked, max_examples=asked.max_examples * EXAMPLES)
