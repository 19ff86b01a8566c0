"""`make demo`: the main job end to end on real input. See nokv/cli/demo.py; `--help` lists the options."""

from __future__ import annotations

import sys

from nokv.cli.demo import main
from nokv.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command(main, name="demo"))
