"""plan: five broken directories, five different blockers; a good one stays untouched to the last byte."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

import nokv
from nokv.cli.main import run
from nokv.engine.mode import ModeRecord, write_mode
from nokv.env.files import OsFiles
from nokv.errors import NotFound
from nokv.migrate.plan import plan


@pytest.fixture
def workdir(tmp_path: Path) -> str:
    path = tmp_path / "db"
    with nokv.open(str(path)) as db:
        db.put_many([(b"key %d" % n, b"value %d" % n) for n in range(500)])
        db.flush()
        db.put_many([(b"later %d" % n, b"x") for n in range(50)])
    return str(path)


def picture(workdir: str) -> dict[str, tuple[int, int, str]]:
    found = {}
    for folder, _, files in os.walk(workdir):
        for name in files:
            path = os.path.join(folder, name)
            status = os.stat(path)
            found[path] = (status.st_size, status.st_mtime_ns, hashlib.sha256(Path(path).read_bytes()).hexdigest())
    return found


def test_a_good_directory_is_eligible_and_untouched(workdir: str) -> None:  # MIG-11, MIG-13
    before = picture(workdir)
    found = plan(workdir)
    assert found.eligible, found
    assert found.mode == "standalone"
    assert found.blockers == []
    assert "migrate init" in found.next
    assert picture(workdir) == before
    assert {"workdir", "mode", "eligible", "blockers", "warnings", "next", "local_catalog_regions"} <= set(
        found.as_dict()
    )


def test_named_families_are_warned_about(workdir: str, capsys: pytest.CaptureFixture[str]) -> None:
    with nokv.open(workdir) as db:
        db.family("orders", create=True).put(b"k", b"v")
        db.family("empty", create=True)
    before = picture(workdir)
    found = plan(workdir)
    assert found.eligible and found.families_left_behind == ["orders"]
    assert picture(workdir) == before
    for arguments in (["migrate", "plan"], ["migrate", "init", "--dry-run"]):
        assert run([*arguments, "--workdir", workdir]) == 0
        assert "not replicated" in capsys.readouterr().out
        assert run([*arguments, "--workdir", workdir, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["families_left_behind"] == ["orders"] and "orders" in document["warnings"][0]


def damage_table(workdir: str) -> None:
    table = next(p for p in sorted(Path(workdir).iterdir()) if p.suffix == ".sst")
    table.write_bytes(table.read_bytes()[:-10])


def damage_manifest(workdir: str) -> None:
    manifest = next(p for p in sorted(Path(workdir).iterdir()) if p.name.startswith("MANIFEST"))
    data = bytearray(manifest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    manifest.write_bytes(bytes(data))


def set_mode(mode: str) -> object:
    return lambda workdir: write_mode(workdir, ModeRecord(mode, 1, 1, 101), OsFiles())


def add_catalog(workdir: str) -> None:
    with nokv.open(workdir) as db:
        db.family("local", create=True).put(b"region/" + (7).to_bytes(8, "big"), b"?")


def add_transactions(workdir: str) -> None:
    with nokv.open(workdir) as db:
        db.family("write", create=True).put(b"k", b"?")


@pytest.mark.parametrize(
    ("damage", "blocker"),
    [
        (damage_table, "recovery-incoherent"),
        (damage_manifest, "recovery-incoherent"),
        (set_mode("preparing"), "mode-preparing"),
        (set_mode("seeded"), "mode-seeded"),
        (set_mode("cluster"), "mode-cluster"),
        (lambda workdir: Path(workdir, "MODE.json").write_text("{"), "incompatible-mode"),
        (add_catalog, "local-catalog"),
        (add_transactions, "incompatible-state"),
    ],
)
def test_broken_directories(workdir: str, damage: object, blocker: str) -> None:  # MIG-12
    damage(workdir)
    before = picture(workdir)
    found = plan(workdir)
    assert not found.eligible
    assert [b.name for b in found.blockers] == [blocker]
    assert found.blockers[0].detail
    assert found.next
    assert picture(workdir) == before
    assert run(["migrate", "plan", "--workdir", workdir]) == 4
    assert run(["migrate", "init", "--workdir", workdir, "--store", "9"]) in (4, 6)
    assert {k: v for k, v in picture(workdir).items() if not k.endswith("LOCK")} == {
        k: v for k, v in before.items() if not k.endswith("LOCK")
    }


def test_a_live_writer_blocks(workdir: str) -> None:  # MIG-01
    with nokv.open(workdir) as db:
        assert [b.name for b in plan(workdir).blockers] == ["locked"]
        assert run(["migrate", "init", "--workdir", workdir]) == 4
        db.put(b"still", b"works")
    assert plan(workdir).eligible


def test_no_directory(tmp_path: Path) -> None:  # MIG-14
    with pytest.raises(NotFound):
        plan(str(tmp_path / "none"))
    with pytest.raises(NotFound, match="not a NoKV directory"):
        plan(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_directory_is_an_error(workdir: str) -> None:  # MIG-14
    os.chmod(workdir, 0)
    try:
        assert run(["migrate", "plan", "--workdir", workdir]) != 0
    finally:
        os.chmod(workdir, 0o755)
