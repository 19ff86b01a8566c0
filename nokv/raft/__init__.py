"""The Raft consensus state machine, after etcd-io/raft's RawNode contract and Ongaro's thesis.

Owns: terms, votes, log matching, commit, membership, read index. Pure: no asyncio, grpc, protobuf, threading, time,
random, os. Does not own: storage, network, clock. Read `rawnode.py` first.
"""
