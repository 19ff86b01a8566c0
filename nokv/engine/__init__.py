"""One node's ordered store: DB, write batches, WAL, memtable, SSTs, manifest, compaction, snapshots, families, mode
gate.

Owns: the directory, its lock, its `MODE.json`, every byte in it but what raftstore stores through it. Does not own:
Raft, regions, timestamps. Hot loops are in `nokv._ext`. Read `db.py` first.
"""
