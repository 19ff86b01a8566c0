"""Promotion of a standalone directory into a cluster, one file per verb: plan, init, status, report, expand, ...

Owns: the checkpoint file and the order of the steps. Does not own: the mode file (engine) or region truth (raftstore).
Read `plan.py` first.
"""
