"""One suite against the real plyvel and ours: each call gives the same answer or kind of error.

Where ours differs from plyvel 1.5.1 on purpose, a `test_quirk_*` pins both answers.
"""

from __future__ import annotations

import array
import copy
import os
import pickle
import random
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nokv.compat.plyvel as ours

plyvel = pytest.importorskip("plyvel")
KINDS = (
    StopIteration,
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    BufferError,
    OverflowError,
    ZeroDivisionError,
)
NAMES = ("IteratorInvalidError", "CorruptionError", "IOError", "Error")


def answer(module: types.ModuleType, code: str, scope: dict[str, Any]) -> object:
    """The value of an expression, or the name of its error."""
    try:
        found = eval(code, scope)  # noqa: S307  (our own script)
    except Exception as error:
        for name in NAMES:
            if isinstance(error, getattr(module, name)):
                return name
        for kind in KINDS:
            if isinstance(error, kind):
                return kind.__name__
        raise
    plain = isinstance(found, (bytes, str, int, list, tuple, type(None)))
    return found if plain else type(found).__name__


SCRIPTS = Path(__file__).resolve().parents[2] / "data" / "compat"


class Bytes(bytes):
    pass


def raw(it: Any) -> list[bytes]:
    it.seek_to_first()
    found = []
    while it.valid():
        found.append(it.key())
        it.next()
    return found


def text(call: Callable[[], Any], path: str) -> str:
    """The error's text without paths. plyvel's is bytes; ours may go on with details."""
    try:
        call()
    except Exception as error:
        said = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        return said.replace(path, "")
    return "no error"


def play(module: types.ModuleType, path: str, steps: list[str]) -> list[object]:
    scope: dict[str, Any] = {"module": module, "path": path}
    scope["set"] = scope.__setitem__
    scope["text"] = lambda call: text(call, path)
    scope.update(array=array, copy=copy, os=os, pickle=pickle, raw=raw, Bytes=Bytes)

    def boom(batch: Any, key: bytes) -> None:
        with batch:
            batch.put(key, b"boom")
            raise ZeroDivisionError

    def calm(batch: Any, key: bytes) -> None:
        with batch:
            batch.put(key, b"calm")

    scope.update(boom=boom, calm=calm, db=module.DB(path, create_if_missing=True))
    return [answer(module, step, scope) for step in steps]


def goes_on(step: str, theirs: object, mine: object) -> bool:
    return step.startswith("text(") and str(mine).startswith(f"{theirs}: ")


@pytest.mark.parametrize("script", ["plyvel.txt", "plyvel_surface.txt"])
def test_same_answers(tmp_path: Path, script: str) -> None:
    steps = (SCRIPTS / script).read_text().splitlines()
    theirs = play(plyvel, str(tmp_path / "theirs"), steps)
    mine = play(ours, str(tmp_path / "ours"), steps)
    different = [(s, t, m) for s, t, m in zip(steps, theirs, mine, strict=True) if t != m and not goes_on(s, t, m)]
    assert different == []
    assert len(steps) > 200


def key(number: int) -> bytes:
    return b"%02d" % number


def bounds(rng: random.Random) -> dict[str, Any]:
    """Arguments of `iterator`; one walk in five has a prefix, and some ranges are empty or upside down."""
    found: dict[str, Any] = {"reverse": rng.random() < 0.5}
    if rng.random() < 0.2:
        return found | {"prefix": b"%d" % rng.randrange(5)}
    for name in ("start", "stop"):
        if rng.random() < 0.7:
            found[name] = key(rng.randrange(40))
        found["include_" + name] = rng.random() < 0.5
    return found


def walk(rng: random.Random, stored: list[bytes]) -> list[str]:
    """An iterator and 50 moves of it, without the two answers of plyvel that the tests of quirks below pin."""
    while True:
        args = bounds(rng)
        prefix = args.get("prefix")
        low = args.get("start", prefix or b"")
        stop = args.get("stop", b"~" if prefix is None else prefix + b"~")
        above = [k for k in stored if k > low or (k == low and args.get("include_start", True))]
        inside = [k for k in above if k < stop or (k == stop and args["include_stop"])]
        if not (inside == [low] and args.get("include_start", True)):  # the second quirk
            break
    steps = [f"set('it', db.iterator({', '.join(f'{name}={value!r}' for name, value in args.items())}))"]
    forbidden: set[str] = set()
    to_right, to_left = ("it.prev()", "next(it)") if args["reverse"] else ("next(it)", "it.prev()")
    moves = ["next(it)", "it.prev()", "it.seek_to_start()", "it.seek_to_stop()", "seek"]
    for move in rng.choices(moves, [9, 9, 1, 1, 4], k=50):
        if move in forbidden:
            continue
        forbidden = set()
        if move == "seek":
            target = key(rng.randrange(40))
            move = f"it.seek({target!r})"
            landing = min(max(target, low), stop)
            right = [k for k in stored if k >= landing][:1]
            left = [k for k in stored if k < landing][-1:]
            if right and right[0] <= stop and right[0] not in inside:
                forbidden.add(to_right)
            if right and left and left[0] not in inside:
                forbidden.add(to_left)
        steps.append(move)
    return steps


@pytest.mark.parametrize("seed", range(12))
def test_same_walks(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    steps = []
    stored: set[bytes] = set()
    for _ in range(rng.choice([0, 3, 20, 60])):
        new, old = key(rng.randrange(40)), key(rng.randrange(40))
        steps += [f"db.put({new!r}, b'{rng.randrange(9)}')", f"db.delete({old!r})"]
        stored = (stored | {new}) - {old}
    for _ in range(40):
        steps += walk(rng, sorted(stored))
    theirs = play(plyvel, str(tmp_path / "theirs"), steps)
    mine = play(ours, str(tmp_path / "ours"), steps)
    different = [(i, s, t, m) for i, (s, t, m) in enumerate(zip(steps, theirs, mine, strict=True)) if t != m]
    assert different == []


def both(tmp_path: Path, steps: list[str]) -> tuple[list[object], list[object]]:
    """The answers of plyvel and ours, over the keys 10, 20, 30 and 40, without the puts."""
    puts = [f"db.put(b'{number}', b'')" for number in (10, 20, 30, 40)]
    theirs, mine = (play(m, str(tmp_path / m.__name__), puts + steps)[len(puts) :] for m in (plyvel, ours))
    return theirs, mine


@pytest.mark.parametrize(
    ("args", "target", "step", "theirs"),
    [
        ("start=b'20'", "20", "it.prev()", b"10"),
        ("start=b'20'", "05", "it.prev()", b"10"),
        ("start=b'20', reverse=True", "15", "next(it)", b"10"),
        ("prefix=b'2'", "20", "it.prev()", b"10"),
        ("start=b'20', include_start=False", "20", "next(it)", b"20"),
        ("start=b'30', stop=b'20', include_stop=True", "25", "next(it)", b"20"),
    ],
)
def test_quirk_seek_leaves_the_bounds(tmp_path: Path, args: str, target: str, step: str, theirs: bytes) -> None:
    """plyvel 1.5.1 does not check `start` in the first step after a seek; ours ends there or stays inside."""
    steps = [f"set('it', db.iterator(include_value=False, {args}))", f"it.seek(b'{target}')", step]
    mine = b"30" if "include_start" in args else "StopIteration"
    assert both(tmp_path, steps) == ([None, None, theirs], [None, None, mine])


@pytest.mark.parametrize(
    ("args", "only"), [("start=b'40'", b"40"), ("start=b'20', stop=b'30'", b"20"), ("prefix=b'20'", b"20")]
)
def test_quirk_a_range_of_its_start_alone(tmp_path: Path, args: str, only: bytes) -> None:
    """plyvel 1.5.1 finds the one entry from the front, and nothing from the end; ours finds it from both."""
    steps = [f"list(db.iterator(include_value=False, {args}, reverse={reverse}))" for reverse in (False, True)]
    assert both(tmp_path, steps) == ([[only], []], [[only], [only]])


def test_seek_beyond_an_inclusive_stop(tmp_path: Path) -> None:
    """It stands before the stop, not behind it: in both."""
    steps = [
        "set('it', db.iterator(include_value=False, stop=b'30', include_stop=True))",
        "it.seek(b'35')",
        "it.prev()",
    ]
    steps += ["next(it)", "next(it)", "next(it)"]
    expected = [None, None, b"20", b"20", b"30", "StopIteration"]
    assert both(tmp_path, steps) == (expected, expected)


def test_every_public_name(tmp_path: Path) -> None:
    assert {name for name in dir(plyvel) if not name.startswith("_")} <= set(dir(ours))
    scopes = []
    for module in (plyvel, ours):
        db = module.DB(str(tmp_path / module.__name__), create_if_missing=True)
        objects = [db, db.prefixed_db(b"p"), db.snapshot(), db.write_batch(), db.iterator(), db.raw_iterator()]
        scopes.append([[name for name in dir(thing) if not name.startswith("_")] for thing in objects])
        db.close()
    assert scopes[0] == scopes[1]


@pytest.mark.parametrize("program", sorted(path.name for path in (SCRIPTS / "programs").glob("*.py")))
def test_same_output_of_whole_programs(tmp_path: Path, program: str) -> None:
    outputs = []
    for name in ("plyvel", "nokv.compat.plyvel"):
        run = subprocess.run(
            [sys.executable, str(SCRIPTS / "programs" / program), name, str(tmp_path / name)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "PYTHONPATH": str(SCRIPTS.parents[2])},
        )
        assert run.returncode == 0, run.stderr
        outputs.append(run.stdout.splitlines())
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) >= 8
