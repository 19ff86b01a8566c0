"""Whole groups and clusters in one thread, from one seed: virtual time, a network and disks that fail, checkers.

Owns: the simulators and the planted bugs that prove that they see something. Does not own: the fakes of single ports
(`nokv/testing`). Read `raft.py` first; `python -m nokv.testing.sim raft --seeds 0:200` runs it.
"""
