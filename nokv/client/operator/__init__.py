"""Blocking clients for operator commands: one for each plane, and the one place where their gRPC errors become ours.

Owns: `RootAdmin`, `CoordinatorAdmin`, `AdminClient` (a store), and what "no answer" means. Does not own: retries, the
verbs that use them, how results look. Read `client.py`.
"""
