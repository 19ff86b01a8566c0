"""One conformance suite over every `Files`, then what only CrashFiles and FaultFiles promise."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nokv.env.ports import Files
from nokv.testing.files import CRASH_MODES, CrashFiles, CrashMode, CrashPoint, FaultFiles


@pytest.fixture(params=["real", "crash", "fault"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Files, str]]:
    if request.param == "real":
        real = pytest.importorskip("nokv.env.files")
        yield real.RealFiles() if hasattr(real, "RealFiles") else real.OsFiles(), str(tmp_path)
        return
    crash = CrashFiles()
    crash.makedirs(str(tmp_path))
    yield crash if request.param == "crash" else FaultFiles(crash), str(tmp_path)


# -- the contract (nokv/env/ports.py) ---------------------------------------------------------------------------------
def test_a_file_is_written_from_front_to_back(disk: tuple[Files, str]) -> None:
    files, root = disk
    path = f"{root}/a"
    file = files.create(path)
    assert file.write(b"hello ") == 6
    assert file.write(memoryview(b"world")) == 5
    file.sync()
    file.close()
    assert files.read_file(path) == b"hello world"
    assert bytes(files.map_file(path)) == b"hello world"
    assert files.size(path) == 11
    assert files.exists(path)
    assert not files.exists(f"{root}/b")
    assert files.listdir(root) == ["a"]


def test_create_replaces_an_existing_name(disk: tuple[Files, str]) -> None:
    files, root = disk
    for content in (b"a longer one", b"short"):
        file = files.create(f"{root}/a")
        file.write(content)
        file.close()
    assert files.read_file(f"{root}/a") == b"short"


def test_an_empty_file_can_be_mapped(disk: tuple[Files, str]) -> None:
    files, root = disk
    files.create(f"{root}/a").close()
    assert bytes(files.map_file(f"{root}/a")) == b""


def test_a_mapping_outlives_the_file(disk: tuple[Files, str]) -> None:
    files, root = disk
    file = files.create(f"{root}/a")
    file.write(b"x" * 10_000)
    file.close()
    mapped = files.map_file(f"{root}/a")
    files.remove(f"{root}/a")
    assert bytes(mapped) == b"x" * 10_000
    assert memoryview(mapped).readonly


def test_a_log_is_zero_where_nothing_was_written(disk: tuple[Files, str]) -> None:
    files, root = disk
    log = files.open_log(f"{root}/1.wal", 8192)
    assert log.capacity == 8192
    log.write(0, b"first")
    log.write(4096, memoryview(b"second"))
    log.sync()
    expected = bytearray(8192)
    expected[:5] = b"first"
    expected[4096:4102] = b"second"
    assert files.size(f"{root}/1.wal") == 8192
    assert files.read_file(f"{root}/1.wal") == bytes(expected)
    log.close()
    assert files.read_file(f"{root}/1.wal") == bytes(expected)


def test_a_recycled_log_is_zeroed_and_renamed(disk: tuple[Files, str]) -> None:
    files, root = disk
    log = files.open_log(f"{root}/1.wal", 8192)
    log.write(0, b"old" * 1000)
    log.close()
    log = files.open_log(f"{root}/2.wal", 8192, recycle=f"{root}/1.wal")
    log.write(10, b"new")
    log.close()
    assert files.listdir(root) == ["2.wal"]
    assert files.read_file(f"{root}/2.wal") == bytes(10) + b"new" + bytes(8192 - 13)


def test_a_log_refuses_an_existing_name(disk: tuple[Files, str]) -> None:
    files, root = disk
    files.open_log(f"{root}/1.wal", 4096).close()
    with pytest.raises(FileExistsError):
        files.open_log(f"{root}/1.wal", 4096)


def test_rename_replaces_and_link_shares(disk: tuple[Files, str]) -> None:
    files, root = disk
    for name in ("a", "b"):
        file = files.create(f"{root}/{name}")
        file.write(name.encode())
        file.close()
    files.link(f"{root}/a", f"{root}/c")
    files.rename(f"{root}/a", f"{root}/b")
    files.sync_dir(root)
    assert files.listdir(root) == ["b", "c"]
    assert files.read_file(f"{root}/b") == files.read_file(f"{root}/c") == b"a"
    with pytest.raises(FileExistsError):
        files.link(f"{root}/b", f"{root}/c")


def test_directories(disk: tuple[Files, str]) -> None:
    files, root = disk
    files.makedirs(f"{root}/x/y")
    files.makedirs(f"{root}/x/y")
    files.create(f"{root}/x/y/f").close()
    with pytest.raises(OSError) as caught:
        files.rmdir(f"{root}/x/y")
    assert caught.value.errno in (errno.ENOTEMPTY, errno.EEXIST)
    files.remove(f"{root}/x/y/f")
    files.rmdir(f"{root}/x/y")
    files.rename(f"{root}/x", f"{root}/z")
    assert files.listdir(root) == ["z"]
    assert files.listdir(f"{root}/z") == []


def test_a_directory_is_no_file_to_read(disk: tuple[Files, str]) -> None:
    files, root = disk
    files.makedirs(f"{root}/x")
    for call in (files.read_file, files.map_file):
        with pytest.raises(OSError) as caught:
            call(f"{root}/x")
        assert caught.value.filename == f"{root}/x", call


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 70_000, 300_000])
def test_all_of_a_file_is_read(disk: tuple[Files, str], size: int) -> None:
    files, root = disk
    data = bytes(n * n & 255 for n in range(size))
    file = files.create(f"{root}/a")
    file.write(data)
    file.close()
    assert files.read_file(f"{root}/a") == data
    assert bytes(files.map_file(f"{root}/a")) == data


def test_what_has_no_size_is_read_to_its_end() -> None:
    real = pytest.importorskip("nokv.env.files").OsFiles()
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc")
    assert real.read_file("/proc/self/maps").endswith(b"\n")
    for call in (real.read_file, real.map_file):
        with pytest.raises(ValueError, match="null"):
            call("a\0b")


def test_errors_carry_errno_and_filename(disk: tuple[Files, str]) -> None:
    files, root = disk
    missing = f"{root}/missing"
    for call in (files.read_file, files.map_file, files.size, files.remove, files.listdir, files.rmdir, files.sync_dir):
        with pytest.raises(FileNotFoundError) as caught:
            call(missing)
        assert caught.value.errno == errno.ENOENT
        assert caught.value.filename == missing, call
    with pytest.raises(FileNotFoundError):
        files.create(f"{missing}/a")
    with pytest.raises(FileNotFoundError):
        files.rename(missing, f"{root}/b")
    with pytest.raises(FileNotFoundError):
        files.link(missing, f"{root}/b")


def test_locks(disk: tuple[Files, str]) -> None:
    files, root = disk
    path = f"{root}/LOCK"
    exclusive = files.lock(path)
    with pytest.raises(BlockingIOError):
        files.lock(path)
    with pytest.raises(BlockingIOError):
        files.lock(path, shared=True)
    exclusive.release()
    one, two = files.lock(path, shared=True), files.lock(path, shared=True)
    with pytest.raises(BlockingIOError):
        files.lock(path)
    one.release()
    two.release()
    files.lock(path).release()


# -- CrashFiles -------------------------------------------------------------------------------------------------------
def _two_halves() -> CrashFiles:
    """A file whose first half was synced (name too), then more was written; and a second file whose name never was."""
    files = CrashFiles()
    files.makedirs("d")
    file = files.create("d/a")
    file.write(b"A" * 1024)
    file.sync()
    files.sync_dir("d")
    file.write(b"B" * 1024)
    other = files.create("d/b")
    other.write(b"C")
    other.sync()
    return files


def test_drop_keeps_what_was_synced() -> None:
    files = _two_halves().crash_clone("drop")
    assert files.listdir("d") == ["a"]
    assert files.read_file("d/a") == b"A" * 1024


def test_keep_and_process_keep_everything() -> None:
    for mode in ("keep", "process"):
        files = _two_halves().crash_clone(mode)  # type: ignore[arg-type]
        assert files.listdir("d") == ["a", "b"]
        assert files.read_file("d/a") == b"A" * 1024 + b"B" * 1024


def test_process_death_does_not_sync() -> None:
    files = _two_halves().crash_clone("process")
    assert files.unsynced() == ["d", "d/a"]
    again = files.crash_clone("drop")
    assert again.listdir("d") == ["a"]
    assert again.read_file("d/a") == b"A" * 1024


def test_names_can_be_lost_alone() -> None:
    files = _two_halves().crash_clone("names")
    assert files.listdir("d") == ["a"]
    assert files.read_file("d/a") == b"A" * 1024 + b"B" * 1024


def test_torn_tears_the_newest_write_at_a_sector() -> None:
    lengths = set()
    for seed in range(50):
        files = CrashFiles()
        file = files.create("a")
        files.sync_dir(".")
        file.write(b"x" * 100)
        file.write(b"y" * 2000)
        content = files.crash_clone("torn", seed=seed).read_file("a")
        assert content == (b"x" * 100 + b"y" * 2000)[: len(content)]
        lengths.add(len(content))
    assert lengths == {100, 512, 1024, 1536, 2048}


def test_random_keeps_a_prefix_of_each_sector() -> None:
    seen = set()
    for seed in range(60):
        files = CrashFiles()
        log = files.open_log("l", 1024)
        files.sync_dir(".")
        log.write(0, b"1" * 100)
        log.write(100, b"2" * 600)
        content = files.crash_clone("random", seed=seed).read_file("l")
        assert len(content) == 1024
        first, second = content[:512], content[512:700]
        assert first in (bytes(512), b"1" * 100 + bytes(412), b"1" * 100 + b"2" * 412)
        assert second in (bytes(188), b"2" * 188)
        seen.add((first, second))
    assert len(seen) == 6  # sectors are independent of each other


def test_a_rename_across_directories_never_loses_the_file() -> None:
    for seed in range(30):
        files = CrashFiles()
        files.makedirs("s")
        files.makedirs("t")
        file = files.create("s/f")
        file.write(b"x")
        file.sync()
        files.sync_dir("s")
        files.rename("s/f", "t/f")
        clone = files.crash_clone("random", seed=seed)
        assert clone.exists("s/f") != clone.exists("t/f")
        files.sync_dir("t")
        clone = files.crash_clone("drop")
        assert (clone.exists("s/f"), clone.exists("t/f")) == (False, True)


def test_hard_links_stay_linked_after_a_crash() -> None:
    files = CrashFiles()
    file = files.create("a")
    files.link("a", "b")
    files.sync_dir(".")
    file.write(b"later")
    file.sync()
    clone = files.crash_clone("drop")
    assert clone.read_file("a") == clone.read_file("b") == b"later"


def test_crash_at_stops_everything() -> None:
    files = CrashFiles(crash_at=3)
    file = files.create("a")
    file.write(b"1")
    with pytest.raises(CrashPoint):
        file.sync()
    for call in (lambda: file.write(b"2"), lambda: files.create("b"), lambda: files.read_file("a"), files.crash_clone):
        if call == files.crash_clone:
            assert call().operation_count == 0
            continue
        with pytest.raises(CrashPoint):
            call()
    file.close()  # a dead process closes its files without a word
    assert [operation.kind for operation in files.operations] == ["create", "write", "sync"]
    assert files.crash_clone("process").read_file("a") == b"1"


def test_a_crash_in_a_write_leaves_a_prefix() -> None:
    lengths = set()
    for seed in range(40):
        files = CrashFiles(seed=seed, crash_at=2)
        file = files.create("a")
        with pytest.raises(CrashPoint):
            file.write(b"abcd")
        lengths.add(len(files.crash_clone("process").read_file("a")))
    assert lengths == {0, 1, 2, 3, 4}


def test_locks_die_with_the_process() -> None:
    files = CrashFiles()
    files.lock("LOCK")
    files.crash_clone("process").lock("LOCK")


NAMES = st.sampled_from(["a", "b", "c"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), NAMES, st.binary(min_size=1, max_size=700)),
        st.tuples(st.just("sync"), NAMES, st.just(b"")),
        st.tuples(st.just("sync_dir"), NAMES, st.just(b"")),
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(STEPS, st.sampled_from(CRASH_MODES), st.integers(0, 2**32))
def test_what_was_synced_survives_every_crash(steps: list[tuple[str, str, bytes]], mode: CrashMode, seed: int) -> None:
    files = CrashFiles()
    files.makedirs("d")
    open_files = {}
    synced: dict[str, bytes] = {}
    written: dict[str, bytes] = {}
    named: set[str] = set()
    for kind, name, data in steps:
        if name not in open_files:
            open_files[name] = files.create(f"d/{name}")
            written[name] = synced[name] = b""
        if kind == "write":
            open_files[name].write(data)
            written[name] += data
        elif kind == "sync":
            open_files[name].sync()
            synced[name] = written[name]
        else:
            files.sync_dir("d")
            named = set(open_files)
    clone = files.crash_clone(mode, seed=seed)
    assert named <= set(clone.listdir("d")) <= set(open_files)
    for name in clone.listdir("d"):
        content = clone.read_file(f"d/{name}")
        assert content[: len(synced[name])] == synced[name]
        assert len(content) <= len(written[name])
    assert clone.crash_clone("drop").listdir("d") == (
        clone if mode != "process" else files.crash_clone("drop")
    ).listdir("d")


# -- FaultFiles -------------------------------------------------------------------------------------------------------
def test_the_nth_call_fails_once() -> None:
    files = FaultFiles(CrashFiles())
    files.fail("sync", at=2, path=".wal")
    log, other = files.open_log("1.wal", 4096), files.create("1.sst")
    other.sync()
    log.sync()
    with pytest.raises(OSError) as caught:
        log.sync()
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, "1.wal")
    log.sync()
    assert files.struck == [("sync", "1.wal")]


def test_a_full_disk_stays_full_until_healed() -> None:
    files = FaultFiles(CrashFiles())
    files.fail("write", error=errno.ENOSPC, times=None)
    file = files.create("a")
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            file.write(b"x")
        assert caught.value.errno == errno.ENOSPC
    files.heal()
    assert file.write(b"x") == 1


def test_a_short_write_and_a_lie() -> None:
    crash = CrashFiles()
    files = FaultFiles(crash)
    files.fail("write", error="short", times=2)
    files.fail("sync", error="lie")
    file, log = files.create("a"), files.open_log("b", 100)
    assert file.write(b"abcdef") == 3
    with pytest.raises(OSError):
        log.write(0, b"abcdef")
    assert crash.read_file("b")[:6] == b"abc\0\0\0"
    file.sync()
    files.sync_dir(".")
    assert crash.crash_clone("drop").read_file("a") == b""
