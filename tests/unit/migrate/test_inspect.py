"""OverlayFiles: behaves like the files below it plus what was changed, and changes nothing below."""

from __future__ import annotations

from pathlib import Path

import pytest

import nokv
from nokv.env.files import OsFiles
from nokv.errors import Locked, NotFound
from nokv.migrate.inspect import OverlayFiles, open_for_reading


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(b"aaa")
    (tmp_path / "d" / "b").write_bytes(b"bbb")
    return tmp_path / "d"


def test_changes_stay_above(base: Path) -> None:
    files, folder = OverlayFiles(OsFiles()), str(base)
    file = files.create(f"{folder}/c")
    file.write(b"c1")
    file.write(b"c2")
    file.sync()
    file.close()
    files.remove(f"{folder}/a")
    files.rename(f"{folder}/b", f"{folder}/b2")
    files.link(f"{folder}/b2", f"{folder}/b3")
    log = files.open_log(f"{folder}/log", 16, recycle=f"{folder}/c")
    log.write(4, b"xy")
    files.makedirs(f"{folder}/new/deep")
    assert files.listdir(folder) == ["b2", "b3", "log", "new"]
    assert files.listdir(f"{folder}/new") == ["deep"]
    assert files.read_file(f"{folder}/b3") == b"bbb"
    assert bytes(files.map_file(f"{folder}/log")) == b"\0" * 4 + b"xy" + b"\0" * 10
    assert files.size(f"{folder}/log") == 16
    for missing in ("a", "b", "c", "none"):
        assert not files.exists(f"{folder}/{missing}")
        with pytest.raises(FileNotFoundError):
            files.read_file(f"{folder}/{missing}")
        with pytest.raises(FileNotFoundError):
            files.remove(f"{folder}/{missing}")
    with pytest.raises(FileExistsError):
        files.link(f"{folder}/b2", f"{folder}/log")
    with pytest.raises(OSError, match="not empty"):
        files.rmdir(f"{folder}/new")
    files.rmdir(f"{folder}/new/deep")
    with pytest.raises(OSError, match="No space"):
        log.write(15, b"xy")
    assert sorted(p.name for p in base.iterdir()) == ["a", "b"]
    assert (base / "b").read_bytes() == b"bbb"


def test_an_open_directory(tmp_path: Path) -> None:
    path = str(tmp_path / "db")
    with nokv.open(path) as db:
        db.put(b"k", b"v")
        with pytest.raises(Locked):
            open_for_reading(path, "standalone", OsFiles())
    with open_for_reading(path, "standalone", OsFiles()) as one, open_for_reading(path, "standalone", OsFiles()) as two:
        one.put(b"k", b"changed")
        one.flush()
        assert two.get(b"k") == b"v"
        with pytest.raises(Locked):
            nokv.open(path)
    with nokv.open(path) as db:
        assert dict(db.scan()) == {b"k": b"v"}
    with pytest.raises(NotFound):
        open_for_reading(str(tmp_path / "none"), "standalone", OsFiles())
