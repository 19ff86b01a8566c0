"""The truth plane: typed events, the state that folds them, the replicated log, its service and client.

Owns: cluster metadata. Does not own: views (coordinator), data (raftstore). Read `state.py` first.
"""
