"""Fakes that keep the real contracts: fake clock, CrashFiles, FaultFiles, step executor, simulated network and cluster.

Ours, and open to users. Read `files.py` first.
"""
