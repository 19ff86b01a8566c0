"""Promotion of a standalone directory into a cluster, one file per verb: plan, init, status, report, expand, ...

Owns: the checkpoint file (docs/formats/migration_checkpoint.md) and the order of the steps. Does not own: the mode file
(engine), region truth (raftstore), processes (cli). Read `plan.py`, then `init.py`, then `expand.py`.
"""
