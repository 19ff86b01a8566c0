"""The README's examples run, as they stand: the embedded one, then the cluster one on the directory it left."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert len(found) == 1, f"the README has {len(found)} {language} blocks"
    return found[0]


def program(folder: Path, name: str, module: str) -> None:
    """`name` on PATH, whether or not the package is installed."""
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
    path.chmod(0o755)


@pytest.mark.e2e
@pytest.mark.timeout(240)
def test_the_readme_runs(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    program(programs, "nokv", "nokv.cli")
    program(programs, "nokv-shell", "nokv_shell.main")
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'shell'}",
    }
    subprocess.run([sys.executable, "-c", block("python")], cwd=tmp_path, env=environment, check=True, timeout=60)
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block("sh")],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
        )
    finally:
        subprocess.run(["nokv", "cluster", "down", "--dir", "c"], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Edsger" in done.stdout and "Donald" in done.stdout
    assert "region-bootstrapped" in done.stdout
