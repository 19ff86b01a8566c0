"""One member of a three-process pysyncobj group; the one that leads makes the load.

    python -m bench.pysyncobj_peer OWN OTHER OTHER --callers 256

Prints `leader` or `follower`. Each line on stdin is a number of operations: does them and prints `done`. Ends with
stdin.

The caller sits inside the leading process, which is the library at its best: no client connection is in its figure.
Append period 10 ms: with shorter ones it logged that replicas diverge. It does not flush on commit, so this is memory
against our fsync."""

from __future__ import annotations

import argparse
import sys
import threading
from typing import Any

from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.batteries import ReplDict

VALUE = "x" * 256


def load(table: Any, callers: int, operations: int) -> None:
    """So many sets, `callers` of them outstanding: each that finishes starts the next. RuntimeError if one fails."""
    done = threading.Event()
    state = {"started": 0, "finished": 0, "failed": 0}

    def start() -> None:
        state["started"] += 1
        table.set(f"bench/{state['started'] % 10_000:06d}", VALUE, callback=finished)

    def finished(_: object, error: int) -> None:  # on the library's thread
        state["finished"] += 1
        state["failed"] += error != 0
        if state["started"] < operations:
            start()
        elif state["finished"] == operations:
            done.set()

    for _ in range(min(callers, operations)):
        start()
    if not done.wait(120) or state["failed"]:
        raise RuntimeError(f"pysyncobj: {state}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("address", nargs=3)
    parser.add_argument("--callers", type=int, default=256)
    options = parser.parse_args()
    synced = threading.Event()
    table = ReplDict()
    conf = SyncObjConf(
        appendEntriesPeriod=0.01,
        commandsQueueSize=100_000,
        raftMinTimeout=3.0,  # no election may begin because the machine is busy
        raftMaxTimeout=5.0,
        connectionTimeout=10.0,
        onReady=synced.set,
    )
    node = SyncObj(options.address[0], options.address[1:], conf, consumers=[table])
    if not synced.wait(60):
        raise RuntimeError("pysyncobj: no leader within a minute")
    print("leader" if node.getStatus()["leader"] == node.selfNode else "follower", flush=True)
    for line in sys.stdin:
        load(table, options.callers, int(line))
        print("done", flush=True)
    node.destroy()
    return 0


if __name__ == "__main__":
    sys.exit(main())
