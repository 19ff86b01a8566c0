"""Documents keep their word: relative links lead somewhere, every format page is listed, tests that are named exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_TEST = re.compile(r"`(tests/[\w./-]+\.py)(?:::(\w+))?`")


def _anchors(page: Path) -> set[str]:
    """GitHub's rule: lower case, punctuation gone, spaces become hyphens."""
    found = set()
    for line in page.read_text().splitlines():
        if line.startswith("#"):
            title = re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower())
            found.add(title.replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_CODE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in _anchors(target)):
            broken.append(link)
    assert not broken, f"{page.relative_to(ROOT)}: {broken}"


def test_every_format_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "formats" / "README.md"
    linked = {link.partition("#")[0] for link in _LINK.findall(index.read_text())}
    pages = {page.name for page in index.parent.glob("*.md")} - {"README.md"}
    assert pages <= linked, f"docs/formats/README.md does not link {sorted(pages - linked)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_tests_exist(page: Path) -> None:
    for path, name in _TEST.findall(page.read_text()):
        assert (ROOT / path).exists(), f"{page.relative_to(ROOT)} names {path}"
        if name:
            assert re.search(rf"\b(def|class) {name}\b", (ROOT / path).read_text()), f"{path} has no {name}"
