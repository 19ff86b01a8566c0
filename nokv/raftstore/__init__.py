"""Regions on one store: store, router, applier, snapshot, localmeta, KV and admin services, the node that binds them.

Owns: local region truth, advanced only by apply and bootstrap. Does not own: cluster metadata. Read `store.py` first.
"""
