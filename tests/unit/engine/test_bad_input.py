"""Each misuse is one line, typed, with a hint, and changes nothing on disk. The command line shows no traceback."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import nokv
from nokv._ext.crc32c import crc32c
from nokv.cli.main import run
from nokv.env.files import OsFiles
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CrashFiles, FaultFiles

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with nokv.open(tmp_path / "db", value_file_threshold=100) as db:
        db.put_many([(b"%03d" % n, b"v" * 50) for n in range(100)])
        db.put(b"large", b"l" * 500)
        db.flush()
        db.put(b"logged", b"1")
    return tmp_path / "db"


def state(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in sorted(directory.rglob("*"))
    }


def is_one_line(error: nokv.NoKVError) -> None:
    assert str(error) and "\n" not in str(error)
    assert error.hint and "\n" not in error.hint


def refuses(
    directory: Path, call: Callable[[], Any], kind: type[nokv.NoKVError], *parts: str, exact: bool = True
) -> None:
    before = state(directory)
    with pytest.raises(kind) as caught:
        call()
    is_one_line(caught.value)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    if exact:
        assert type(caught.value) is kind
    assert state(directory) == before


def command_refuses(capsys: pytest.CaptureFixture[str], directory: Path, code: int, *arguments: object) -> None:
    before = state(directory)
    assert run([str(a) for a in arguments]) == code
    found = capsys.readouterr()
    assert found.out == "" and "Traceback" not in found.err
    lines = found.err.splitlines()
    assert lines[0].startswith("nokv: error: ") and any(line.startswith("  next: ") for line in lines[1:])
    assert len(lines) <= 3 and state(directory) == before


def test_a_missing_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = tmp_path / "absent"
    for options in ({"create": False}, {"read_only": True}):
        refuses(tmp_path, lambda o=options: nokv.open(absent, **o), nokv.NotFound, "absent")  # type: ignore[misc]
    command_refuses(capsys, tmp_path, 3, "get", "k", "--workdir", absent)
    command_refuses(capsys, tmp_path, 3, "put", "k", "v", "--workdir", absent)
    for verb in ("check", "repair"):
        command_refuses(capsys, tmp_path, 3, verb, "--workdir", absent)
    command_refuses(capsys, tmp_path, 3, "import", absent, "--workdir", tmp_path / "db")
    for verb in ("sst", "blob"):
        command_refuses(capsys, tmp_path, 3, verb, "show", absent)
    empty = tmp_path / "empty"
    empty.mkdir()
    for options in ({"create": False}, {"read_only": True}):
        refuses(tmp_path, lambda o=options: nokv.open(empty, **o), nokv.NotFound, "empty")  # type: ignore[misc]


def test_a_file_where_a_directory_should_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"mine")
    for options in ({}, {"create": False}, {"read_only": True}):
        refuses(tmp_path, lambda o=options: nokv.open(file, **o), nokv.UsageError, "is a file")  # type: ignore[misc]
    refuses(tmp_path, lambda: nokv.open(file / "below"), nokv.UsageError, "file")
    command_refuses(capsys, tmp_path, 2, "get", "k", "--workdir", file)
    for verb in ("check", "repair"):
        command_refuses(capsys, tmp_path, 2, verb, "--workdir", file)


def test_an_empty_path_is_not_the_root_of_the_file_system(tmp_path: Path) -> None:
    with nokv.open(tmp_path / "db") as db:
        for call in (nokv.open, nokv.check, nokv.repair, nokv.destroy, db.checkpoint, db.export_sst, db.link_tables):
            for path, what in (("", "empty"), ("a\0b", "zero byte"), (5, "no path"), (None, "no path")):
                with pytest.raises(nokv.UsageError, match=what) as caught:
                    call(path)
                is_one_line(caught.value)


def test_an_export_leaves_an_earlier_one_alone(path: Path, tmp_path: Path) -> None:
    with nokv.open(path, families=["f"]) as db:
        db.family("f").put(b"in f", b"1")
        made = db.export_sst(tmp_path / "out")
        refuses(tmp_path, lambda: db.export_sst(tmp_path / "out"), nokv.PreconditionFailed, "holds tables already")
        with nokv.open(tmp_path / "copy", families=["f"]) as copy:
            copy.ingest_sst([tmp_path / "out" / table.name for table in made])
            assert dict(copy) == dict(db) and copy.family("f").get(b"in f") == b"1"


def test_a_place_for_tables_that_is_none(path: Path, tmp_path: Path) -> None:
    """Found by faults in system calls: an OSError came out as it was."""
    (tmp_path / "file").write_bytes(b"x")
    with nokv.open(path) as db:
        db.flush()
        for call in (db.export_sst, db.link_tables, db.checkpoint):
            for name in ("file", "file/below", "n" * 300):
                refuses(tmp_path, partial(call, tmp_path / name), nokv.UsageError, str(tmp_path / name))
            if os.path.exists("/proc/self"):
                refuses(tmp_path, partial(call, "/proc/none"), nokv.Unavailable, "/proc/none")
        for ranges in ([("plain",)], [b"a"], [("plain", None, None, None)]):
            refuses(tmp_path, partial(db.export_sst, tmp_path / "new", ranges), nokv.UsageError, "a range to export is")


def test_what_is_no_table_is_not_ingested(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with nokv.open(path) as db:
        db.flush()
        for name, kind, what in (
            ("missing", nokv.UsageError, "no such file"),
            ("file/below", nokv.UsageError, "no such file"),
            ("folder", nokv.UsageError, "is a directory"),
            ("000001.sst" + "\0", nokv.UsageError, "no such file"),
        ):
            refuses(tmp_path, partial(db.ingest_sst, [f"{tmp_path}/{name}"]), kind, what, f"{tmp_path}/{name}")
        for name in ("file", "empty"):
            before = state(path)
            with pytest.raises(nokv.Corruption) as caught:
                db.ingest_sst([tmp_path / name])
            assert caught.value.path == str(tmp_path / name) and state(path) == before
        for tables in (None, 5, [5], [[5]], "a path"):
            refuses(tmp_path, partial(db.ingest_sst, tables), nokv.UsageError, "takes a list of paths")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_table_that_may_not_be_read(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    (tmp_path / "file").chmod(0)
    with nokv.open(path) as db:
        refuses(path, partial(db.ingest_sst, [tmp_path / "file"]), nokv.UsageError, "cannot be read: Permission denied")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("kind", ["makedirs", "listdir", "create", "write", "sync", "sync_dir"])
def test_an_export_to_a_bad_disk(kind: str, error: int) -> None:
    files = FaultFiles(CrashFiles())
    with nokv.open("db", files=files, executor=StepExecutor(inline=True)) as db:
        db.put(b"a", b"1")
        db.flush()
        files.fail(kind, error=error, path="out")
        with pytest.raises(nokv.ReadOnly if error == errno.EACCES else nokv.Unavailable) as caught:
            db.export_sst("out")
        is_one_line(caught.value)
        assert str(caught.value).startswith("out cannot be ") and os.strerror(error) in str(caught.value)
        files.heal()
        assert not files.exists("out") or files.listdir("out") == []
        assert [table.entries for table in db.export_sst("out")] == [1]
        db.put(b"b", b"2")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("kind", ["map_file", "link", "sync_dir", "write", "sync"])
def test_an_ingest_on_a_bad_disk(kind: str, error: int) -> None:
    """Nothing has changed, and after a failure that passes it may be tried again."""
    files = FaultFiles(CrashFiles())
    with nokv.open("db", files=files, executor=StepExecutor(inline=True)) as db:
        db.put(b"a", b"new")
        db.export_sst("out")
        db.put(b"a", b"newer")
        db.flush()
        files.fail(kind, error=error, path="out" if kind == "map_file" else "" if kind == "link" else "db")
        with pytest.raises(nokv.NoKVError) as caught:
            db.ingest_sst(["out/000001.sst"])
        is_one_line(caught.value)
        if kind == "map_file":
            assert type(caught.value) is (nokv.UsageError if error == errno.EACCES else nokv.Unavailable)
            assert str(caught.value).startswith("out/000001.sst cannot be read: ")
        else:
            assert type(caught.value) is nokv.ReadOnly and str(caught.value).startswith("db: ingest failed: ")
        files.heal()
        assert db[b"a"] == b"newer"
        if kind in ("map_file", "link") and (kind == "map_file" or error == errno.ENOSPC):
            db.ingest_sst(["out/000001.sst"])
            assert db[b"a"] == b"new"
    with nokv.open("db", files=files, executor=StepExecutor(inline=True)) as db:
        assert db[b"a"] in (b"newer", b"new") and not db.verify().damaged


@pytest.mark.parametrize("error", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_what_the_system_cannot_read(error: int) -> None:
    files = FaultFiles(CrashFiles())
    with nokv.open("db", files=files, executor=StepExecutor(inline=True)) as db:
        db.put(b"a", b"1")
        db.flush()
        with nokv.open("db", files=files, executor=StepExecutor(inline=True), read_only=True) as reader:
            db.put(b"b", b"2")
            for kind, call in (
                ("map_file", db.verify),
                ("map_file", db.check),
                ("map_file", reader.verify),
                ("map_file", reader.refresh),
                ("read_file", reader.refresh),
                ("listdir", reader.refresh),
            ):
                files.fail(kind, error=error, times=None)
                with pytest.raises(nokv.Unavailable, match=f"^db cannot be read: {os.strerror(error)}") as caught:
                    call()
                is_one_line(caught.value)
                files.heal()
            assert reader.refresh() and reader[b"b"] == b"2"
        assert not db.verify().damaged


@pytest.mark.parametrize("kind", ["write", "sync"])
def test_a_family_that_cannot_be_written_down(kind: str) -> None:
    files = FaultFiles(CrashFiles())
    with nokv.open("db", files=files, executor=StepExecutor(inline=True)) as db:
        files.fail(kind, path="MANIFEST")
        with pytest.raises(nokv.ReadOnly, match=r"^db: naming a family failed: ") as caught:
            db.family("new", create=True)
        is_one_line(caught.value)
        assert "new" not in db.families()


def test_a_locked_directory(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with nokv.open(path):
        refuses(path, lambda: nokv.open(path), nokv.Locked, "is open")
        command_refuses(capsys, path, 4, "put", "k", "v", "--workdir", path)
        with nokv.open(path, read_only=True) as reader:
            assert reader[b"logged"] == b"1"


def newer_current(path: Path) -> Path:
    text = b"nokv 2 " + (path / "CURRENT").read_bytes().split()[2]
    (path / "CURRENT").write_bytes(text + b" crc32c %08x\n" % crc32c(text))
    return path / "CURRENT"


def newer_manifest(path: Path) -> Path:
    (file,) = path.glob("MANIFEST-*")
    data = file.read_bytes()
    head = data[:8] + struct.pack("<I", 2) + data[12:28]
    file.write_bytes(head + struct.pack("<I", crc32c(head)) + data[32:])
    return file


def newer_table(path: Path) -> Path:
    (file,) = path.glob("*.sst")
    data = file.read_bytes()
    head = data[-64:-16] + struct.pack("<I", 99)
    file.write_bytes(data[:-64] + head + struct.pack("<I", crc32c(head)) + data[-8:])
    return file


def newer_values(path: Path) -> Path:
    (file,) = path.glob("*.val")
    data = file.read_bytes()
    head = data[:8] + struct.pack("<I", 2) + data[12:28]
    file.write_bytes(head + struct.pack("<I", crc32c(head)) + data[32:])
    return file


def newer_mode(path: Path) -> Path:
    (path / "MODE.json").write_text('{"format": 99}')
    return path / "MODE.json"


@pytest.mark.parametrize("change", [newer_current, newer_manifest, newer_table, newer_values, newer_mode])
def test_a_newer_format(path: Path, change: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]) -> None:
    file = change(path)
    for options in ({}, {"read_only": True}):
        refuses(path, lambda o=options: nokv.open(path, **o), nokv.NotSupported, str(file))  # type: ignore[misc]
    command_refuses(capsys, path, 4, "get", "k", "--workdir", path)


class ReadOnlyFiles:
    """Real files on a disk that takes nothing: what a read-only file system answers."""

    def __init__(self) -> None:
        self.inner = OsFiles()

    def __getattr__(self, name: str) -> Any:
        if name in ("map_file", "read_file", "listdir", "exists", "size", "data_end"):
            return getattr(self.inner, name)

        def refuse(path: str, *_: Any, **__: Any) -> Any:
            raise OSError(30, os.strerror(30), path)

        return refuse


def test_a_read_only_file_system(path: Path) -> None:
    files: Any = ReadOnlyFiles()
    refuses(path, lambda: nokv.open(path, files=files), nokv.ReadOnly, "cannot be written")
    refuses(path, lambda: nokv.open(path / "new", files=files), nokv.ReadOnly, "cannot be written")
    for call in (nokv.repair, nokv.destroy):
        refuses(path, lambda call=call: call(path, files=files), nokv.ReadOnly, "cannot be written")  # type: ignore[misc]
    with nokv.open(path, files=files, read_only=True) as db:
        assert len(db) == 102 and db[b"large"] == b"l" * 500
        with pytest.raises(nokv.ReadOnly) as caught:
            db.put(b"k", b"v")
        is_one_line(caught.value)


MISUSES: dict[str, Callable[[nokv.DB], Any]] = {
    "str key": lambda db: db.put("k", b"v"),  # type: ignore[arg-type]
    "str value": lambda db: db.put(b"k", "v"),  # type: ignore[arg-type]
    "str get": lambda db: db.get("k"),  # type: ignore[call-overload]
    "str get_many": lambda db: db.get_many(["k"]),  # type: ignore[list-item]
    "str put_many": lambda db: db.put_many({"k": b"v"}),  # type: ignore[arg-type]
    "str delete": lambda db: db.delete("k"),  # type: ignore[arg-type]
    "str scan": lambda db: db.scan("a"),  # type: ignore[call-overload]
    "str prefix": lambda db: db.scan(prefix="a"),  # type: ignore[call-overload]
    "int key": lambda db: db.put(1, b"v"),  # type: ignore[arg-type]
    "None value": lambda db: db.put(b"k", None),  # type: ignore[arg-type]
    "long key": lambda db: db.put(bytes(65537), b""),
    "long key of a batch": lambda db: db.put_many([(b"fine", b""), (bytes(65537), b"")]),
    "reversed scan": lambda db: db.scan(b"b", b"a"),
    "unknown option": lambda db: nokv.open(db.path + "2", write_bufer_bytes=1),
    "bad option": lambda db: nokv.open(db.path + "2", value_file_threshold=-1),
}


@pytest.mark.parametrize("name", MISUSES)
def test_a_wrong_argument(path: Path, name: str) -> None:
    with nokv.open(path, durability="process") as db:
        before = dict(db)
        with pytest.raises(nokv.UsageError) as caught:
            MISUSES[name](db)
        is_one_line(caught.value) if "option" not in name else None
        assert dict(db) == before
    assert not os.path.exists(f"{path}2")


@pytest.mark.parametrize("read_only", [False, True])
def test_a_closed_handle(path: Path, read_only: bool) -> None:
    db = nokv.open(path, read_only=read_only)
    scan, snapshot, iterator, family = db.scan(), db.snapshot(), db.iterator(), db.family("plain")
    batch = nokv.WriteBatch()
    batch.put(b"k", b"v")
    db.close()
    calls: list[Callable[[], Any]] = [
        lambda: db.get(b"k"), lambda: db.put(b"k", b"v"), lambda: db.delete(b"k"), lambda: db.get_many([b"k"]),
        lambda: db.put_many([(b"k", b"v")]), lambda: db.write(batch), db.scan, db.iterator, db.snapshot, db.flush,
        db.compact, db.stats, db.verify, db.refresh, lambda: db.delete_range(b"a", b"b"), lambda: next(scan),
        lambda: snapshot.get(b"k"), iterator.seek_first, lambda: family.get(b"k"), lambda: family.put(b"k", b"v"),
        db.transaction, lambda: db.checkpoint(path / "copy"), lambda: db.family("new", create=True),
    ]  # fmt: skip
    for number, call in enumerate(calls):
        before = state(path)
        with pytest.raises(nokv.Closed) as caught:
            call()
        is_one_line(caught.value)
        assert state(path) == before, number


def test_the_command_line_says_it_in_one_line(path: Path) -> None:
    """A real process: nothing of Python shows."""
    for arguments, code in (
        (["get", "k", "--workdir", str(path)], 3),
        (["put", "x" * 65537, "v", "--workdir", str(path)], 2),
        (["scan", "--workdir", str(path / "CURRENT")], 2),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "nokv.cli", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == code and done.stdout == "", done.stderr
        assert done.stderr.startswith("nokv: error: ") and "Traceback" not in done.stderr


# -- a full disk ------------------------------------------------------------------------------------------------------
@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = shutil.which("mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    if mount is None or os.getuid() != 0:
        pytest.skip("mounting a small file system needs root and mount(8)")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=7m", "none", str(disk)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("size", [200, 3000, 40_000])
@pytest.mark.parametrize("sync", [False, True])
def test_a_full_disk_loses_nothing_acknowledged(small_disk: Path, size: int, sync: bool) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(5 << 20))  # 2 MiB are left; what a merge needs beside its inputs comes back later
    path = small_disk / "db"
    options: dict[str, Any] = {
        "write_buffer_bytes": 64 << 10,
        "wal_segment_bytes": 256 << 10,
        "value_file_threshold": 2000,
        "durability": "sync" if sync else "process",
    }
    acknowledged: dict[bytes, bytes] = {}
    with nokv.open(path, **options) as db:
        number = failures = 0
        while failures < 5:
            key, value = b"%06d" % number, os.urandom(size)
            number += 1
            try:
                db.put(key, value)
                acknowledged[key] = value
            except nokv.ReadOnly as error:
                is_one_line(error)
                failures += 1
                assert dict(db.scan()).items() >= acknowledged.items()
                assert db.get_many(list(acknowledged)) == list(acknowledged.values())
            assert number < 50_000
        assert len(acknowledged) * size > 300_000
    try:
        with nokv.open(path, **options) as db:  # still full: it opens, or says why
            assert dict(db.scan()).items() >= acknowledged.items()
    except (nokv.ReadOnly, nokv.Unavailable) as error:
        assert "\n" not in str(error)
    with nokv.open(path, read_only=True) as db:
        assert dict(db.scan()).items() >= acknowledged.items()
    filler.unlink()
    del db
    gc.collect()  # removed files occupy the disk until nobody maps them
    with nokv.open(path, **options) as db:
        found = dict(db.scan())
        assert found.items() >= acknowledged.items() and len(found) <= len(acknowledged) + 5
        for n in range(10):
            db.put(b"again%d" % n, b"1")
        db.flush()
        assert not db.verify().damaged
    with nokv.open(path, **options) as db:
        assert dict(db.scan()) == {**found, **{b"again%d" % n: b"1" for n in range(10)}}
