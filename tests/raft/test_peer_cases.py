"""The peer's conformance cases (where they are at hand) and our own, output for output."""

from __future__ import annotations

from pathlib import Path

import pytest

from nokv.testing.raft_datadriven import parse, run_file, run_text
from nokv.testing.raft_datadriven.__main__ import main

ROOT = Path(__file__).parents[2]
OWN = ROOT / "tests" / "data" / "raft"
PEER = next((p / "shared" / "raft-testdata" for p in ROOT.parents if (p / "shared" / "raft-testdata").is_dir()), None)
KINDS = ("interaction", "confchange", "quorum")


def files(folder: Path | None) -> list[object]:
    if folder is None:
        return [pytest.param("", None, marks=pytest.mark.skip("the peer's cases are not here"))]
    found = [(kind, path) for kind in KINDS for path in sorted((folder / kind).glob("*.txt"))]
    return [pytest.param(kind, path, id=f"{kind}-{path.stem}") for kind, path in found]


@pytest.mark.parametrize(("kind", "path"), files(PEER) + files(OWN))
def test_cases(kind: str, path: Path) -> None:
    result = run_file(kind, path)
    shown = [
        f"{path}:{case.line}: {case.command}\n--- expected\n{case.expected}--- actual\n{actual}"
        for case, actual in result.mismatches
    ]
    assert not shown, "\n".join(shown)
    assert result.text == path.read_text(encoding="utf-8")


@pytest.mark.skipif(PEER is None, reason="the peer's cases are not here")
def test_all_cases_at_hand_are_run() -> None:
    assert PEER is not None
    paths = [(kind, path) for kind in KINDS for path in (PEER / kind).glob("*.txt")]
    assert sum(run_file(kind, path).cases for kind, path in paths) >= 332


@pytest.mark.parametrize(("kind", "path"), files(OWN))
def test_outputs_do_not_depend_on_what_was_expected(kind: str, path: Path) -> None:
    """A file with its outputs removed comes out the same."""
    bare = []
    for item in parse(path.read_text(encoding="utf-8")):
        bare += [item] if isinstance(item, str) else item.before
    assert run_text(kind, "\n".join(bare) + "\n").text == path.read_text(encoding="utf-8")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "one.txt"
    script.write_text("vote cfg=(1, 2) \\\n  votes=(y,y)\n----\n\n# the end\n")
    assert main(["--kind", "quorum", str(script)]) == 0
    assert capsys.readouterr().out == "vote cfg=(1, 2) \\\n  votes=(y,y)\n----\nVoteWon\n\n# the end\n"
    assert main(["--kind", "quorum", "--check", str(script)]) == 1
    script.write_text("fly\n----\n")
    assert main(["--kind", "interaction", str(script)]) == 2
    assert "line 1: fly: unknown command" in capsys.readouterr().err


def test_outputs_with_blank_lines_use_doubled_markers() -> None:
    text = "vote cfg=(1) votes=(y)\n----\n----\nold\n\nold\n----\n----\n\n# end\n"
    result = run_text("quorum", text)
    assert result.mismatches[0][0].expected == "old\n\nold\n"
    assert result.text == "vote cfg=(1) votes=(y)\n----\nVoteWon\n\n# end\n"
