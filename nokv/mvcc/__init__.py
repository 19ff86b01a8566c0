"""Percolator's data model over an engine snapshot and a batch: key codec, reader, one-phase commits.

Owns: how versions, locks and values lie in the families `lock`, `write`, `default`, and the fallback to plain
records that makes promoted data readable. Pure. Does not own: timestamps, routing. Read `reader.py` first.
"""
