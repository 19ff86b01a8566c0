"""Command line of the interpreter."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nokv.testing.raft_datadriven.runner import KINDS, run_file
from nokv.testing.raft_datadriven.script import ScriptError

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nokv.testing.raft_datadriven", description="Run one script file of the data-driven Raft tests."
    )
    parser.add_argument("--kind", choices=sorted(KINDS), required=True)
    parser.add_argument("--check", action="store_true", help="compare with the outputs in FILE; exit 1 if one differs")
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    try:
        result = run_file(options.kind, options.file)
    except (OSError, ScriptError) as error:
        print(f"{options.file}: {error}", file=sys.stderr)
        return 2
    if not options.check:
        sys.stdout.write(result.text)
        return 0
    for case, actual in result.mismatches:
        print(f"{options.file}:{case.line}: {case.command}\n--- expected\n{case.expected}--- actual\n{actual}")
    print(f"{options.file}: {result.cases - len(result.mismatches)} of {result.cases} cases agree")
    return 1 if result.mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
