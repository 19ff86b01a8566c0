"""The control plane: a rebuildable view of the truth: routing, heartbeats, TSO, ids, the lease.

Owns: nothing durable. Everything here can be lost at any moment. Read `view.py` first.
"""
