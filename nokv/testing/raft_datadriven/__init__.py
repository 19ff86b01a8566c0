"""Runs script files of the data-driven Raft tests, in the format of etcd-io/raft's testdata.

    python -m nokv.testing.raft_datadriven --kind interaction|confchange|quorum FILE            print with real outputs
    python -m nokv.testing.raft_datadriven --kind interaction|confchange|quorum --check FILE    compare instead

A case is comments and blank lines, a command line, input lines, `----`, the output up to a blank line. An output with
blank lines in it stands between doubled markers. `interaction` scripts drive whole RawNodes over a network that
delivers when told; `confchange` the membership calculator; `quorum` the arithmetic of majorities. See tests/data/raft.
Read `interaction.py` first.
"""

from __future__ import annotations

from nokv.testing.raft_datadriven.runner import Result, run_file, run_text
from nokv.testing.raft_datadriven.script import Case, ScriptError, parse

__all__ = ["Case", "Result", "ScriptError", "parse", "run_file", "run_text"]
