"""What a test's subprocess is told when it runs under the sanitizers (make test-asan)."""

from __future__ import annotations

import os

__all__ = ["without_leaks"]


def without_leaks() -> dict[str, str]:
    """The environment for a process that ends while threads still run: what they held is no leak of ours."""
    options = os.environ.get("ASAN_OPTIONS")
    return {**os.environ, **({"ASAN_OPTIONS": options.replace("detect_leaks=1", "detect_leaks=0")} if options else {})}
