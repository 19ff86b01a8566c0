"""One profile for every property test: no wall clock decides (a busy machine is no bug), and a failure prints what
replays it."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("nokv", deadline=None, print_blob=True)
settings.load_profile("nokv")
