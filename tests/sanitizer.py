"""What differs when the tests run under the sanitizers (make test-asan)."""

from __future__ import annotations

import os

import pytest

__all__ = ["own_allocator", "without_leaks"]

own_allocator = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer's allocator is measured"
)


def without_leaks() -> dict[str, str]:
    """The environment for a process that ends while threads still run: what they held is no leak of ours."""
    options = os.environ.get("ASAN_OPTIONS")
    return {**os.environ, **({"ASAN_OPTIONS": options.replace("detect_leaks=1", "detect_leaks=0")} if options else {})}
