"""Imports point down (docs/architecture.md draws the picture). Reads `import` with ast, and `cimport` lines as text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Bottom row first. Folders of one row are siblings and never import each other.
ROWS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "region", "literal"}),
    frozenset({"env", "_ext", "pb"}),
    frozenset({"engine", "raft", "rpc"}),
    frozenset({"multiraft", "aio"}),
    frozenset({"metaroot", "mvcc"}),
    frozenset({"raftstore", "coordinator"}),
    frozenset({"client"}),
    frozenset({"nokv_shell", "dashboard", "gateway", "migrate", "testing", "compat"}),
    frozenset({"cli"}),  # the leaf that wires everything together
)
ROW = {folder: number for number, row in enumerate(ROWS) for folder in row}

# `import nokv` is the engine's public face; `nokv.connect` reaches the client only when it is called.
PUBLIC = "engine"
SIDEWAYS = {
    ("env", "_ext"),  # the real files are compiled classes
    ("literal", "errors"),
}

NETWORK = frozenset({"grpc", "asyncio"})
NETWORK_FILES = frozenset({"transport", "service", "server", "client", "node", "host"})
IMPURE = frozenset(
    {"asyncio", "grpc", "google", "nokv.pb", "os", "random", "secrets", "socket", "subprocess", "threading", "time"}
)
PURE_FOLDERS = frozenset({"nokv/raft", "nokv/mvcc"})
PURE_FILES = frozenset(
    {
        "nokv/metaroot/events.py",
        "nokv/metaroot/state.py",
        "nokv/coordinator/lease.py",
        "nokv/coordinator/view.py",
        "nokv/engine/compaction/picker.py",
        "nokv/multiraft/wire.py",
        "shell/nokv_shell/completer.py",
        "shell/nokv_shell/grammar.py",
    }
)


@dataclass(frozen=True, slots=True)
class Import:
    path: str
    line: int
    module: str
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: imports {self.module}"


def _sources() -> Iterator[Path]:
    for folder in ("nokv", "shell/nokv_shell"):
        for pattern in ("*.py", "*.pyx", "*.pxd"):
            for path in sorted((ROOT / folder).rglob(pattern)):
                if "pb" not in path.relative_to(ROOT).parts:
                    yield path


def _python_imports(path: str, text: str) -> Iterator[Import]:
    def walk(node: ast.AST, typing_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(path, child.lineno, alias.name, typing_only)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    package = path.removesuffix(".py").split("/")[: -child.level]
                    base = ".".join([*package, *([base] if base else [])])
                if base in ("nokv", "nokv.engine"):  # `from nokv import pb` names a module, not a value
                    for alias in child.names:
                        yield Import(path, child.lineno, f"{base}.{alias.name}", typing_only)
                else:
                    yield Import(path, child.lineno, base, typing_only)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                for statement in child.body:
                    yield from walk(ast.Module([statement], []), True)
            else:
                yield from walk(child, typing_only)

    yield from walk(ast.parse(text), False)


_CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import\b|c?import\s+([\w.]+))", re.MULTILINE)


def _cython_imports(path: str, text: str) -> Iterator[Import]:
    for match in _CIMPORT.finditer(text):
        module = match.group(1) or match.group(2)
        yield Import(path, text.count("\n", 0, match.start()) + 1, module, False)


def _imports() -> list[Import]:
    found: list[Import] = []
    for source in _sources():
        path = source.relative_to(ROOT).as_posix()
        read = _python_imports if source.suffix == ".py" else _cython_imports
        found.extend(read(path, source.read_text()))
    return found


IMPORTS = _imports()


def _folder(path: str) -> str:
    parts = path.removeprefix("shell/").split("/")
    if parts[0] == "nokv_shell":
        return "nokv_shell"
    return parts[1].rsplit(".", 1)[0]


def _target(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] == "nokv_shell":
        return "nokv_shell"
    if parts[0] != "nokv":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROW else PUBLIC


def _report(wrong: list[str]) -> None:
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_folder_is_in_the_picture() -> None:
    folders = {_folder(imported.path) for imported in IMPORTS} - {"__init__", "__main__"}
    assert folders <= set(ROW), folders - set(ROW)


def test_arrows_point_down() -> None:
    wrong = []
    for imported in IMPORTS:
        folder, target = _folder(imported.path), _target(imported.module)
        if folder in ("__init__", "__main__") or target is None or folder == target or (folder, target) in SIDEWAYS:
            continue
        if ROW[target] > ROW[folder] or (ROW[target] == ROW[folder] and not imported.typing_only):
            wrong.append(f"{imported}: {target} is not below {folder}")
    _report(wrong)


def test_nothing_but_tests_uses_nokv_testing() -> None:
    _report(
        [
            str(imported)
            for imported in IMPORTS
            if imported.module.startswith("nokv.testing") and _folder(imported.path) != "testing"
        ]
    )


def _is_pure(path: str) -> bool:
    return path in PURE_FILES or any(path.startswith(f"{folder}/") for folder in PURE_FOLDERS)


def test_pure_files_touch_nothing_outside() -> None:
    _report(
        [
            str(imported)
            for imported in IMPORTS
            if _is_pure(imported.path)
            and not imported.typing_only
            and (imported.module.split(".")[0] in IMPURE or ".".join(imported.module.split(".")[:2]) in IMPURE)
        ]
    )


def test_grpc_and_asyncio_stay_in_files_named_for_it() -> None:
    wrong = []
    for imported in IMPORTS:
        if imported.module.split(".")[0] not in NETWORK:
            continue
        if Path(imported.path).stem not in NETWORK_FILES:
            wrong.append(str(imported))
    _report(wrong)


def test_the_reader_sees_what_it_must() -> None:
    text = "import time\nfrom nokv import pb\nif TYPE_CHECKING:\n    import os\ndef f():\n    import grpc.aio\n"
    found = [(i.module, i.line, i.typing_only) for i in _python_imports("nokv/raft/x.py", text)]
    assert found == [("time", 1, False), ("nokv.pb", 2, False), ("os", 4, True), ("grpc.aio", 6, False)]
    text = "from libc.stdint cimport uint8_t\ncimport cython\nfrom nokv._ext.codec cimport take\n"
    assert [i.module for i in _cython_imports("x", text)] == ["libc.stdint", "cython", "nokv._ext.codec"]
