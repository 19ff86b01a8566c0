"""What turns the pure Raft into running groups: the durable log of all groups, the wire codec, the transport, the
ready loop.

Owns: `raftlog.py` (typed records in the engine's WAL), `filelog.py` (one group, one plain file), `wire.py`,
`transport.py`, `host.py` (ticks, Ready handling, one sync per turn for all groups). Does not own: what entries mean.
Meta-root runs one group on it, a store many. Read `host.py` first.
"""
