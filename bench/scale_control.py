"""A coordinator with a million regions: how long it takes to rebuild, to look a key up, and how much memory it needs.

    PYTHONPATH=. python -m bench.scale_control [--regions 1000000] [--source state|log] [--json]

A first process writes a synthetic truth to a file as the tail would send it: `state`, chunks of a state (what a
starting coordinator gets), or `log`, one event per region in random order (what a meta-root folds that has no
checkpoint). A second process reads it through the code of the product into a `ClusterView`, gives every region a
leader by heartbeat, and measures itself.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import BinaryIO

from nokv.coordinator.scheduler import Scheduler
from nokv.coordinator.view import ClusterView
from nokv.metaroot.events import RegionBootstrapped, RootRecord, RootToken, StoreJoined
from nokv.metaroot.wire import StateAssembler, record_from_pb, record_to_pb, region_to_pb, store_to_pb
from nokv.pb import root_pb2
from nokv.region import Peer, Region, RegionEpoch, Store

STORES = 100
REPLICAS = 3
REGIONS_PER_CHUNK = 2_000
EVENTS_PER_MESSAGE = 500
_LENGTH = struct.Struct("<I")


def key(number: int) -> bytes:
    return b"table/%012d/row" % (number * 7_919)


def regions(count: int) -> Iterator[Region]:
    for n in range(count):
        peers = tuple(Peer(count + n * REPLICAS + r, (n + r * 37) % STORES + 1) for r in range(REPLICAS))
        start = key(n) if n else b""
        end = key(n + 1) if n + 1 < count else b""
        yield Region(n + 1, start, end, RegionEpoch(4, n % 50 + 1), peers)


def put(file: BinaryIO, message: root_pb2.RootTailResponse) -> None:
    data = message.SerializeToString()
    file.write(_LENGTH.pack(len(data)) + data)


def write_state(file: BinaryIO, count: int) -> None:
    chunk = root_pb2.RootState(cluster_epoch=count, membership_epoch=STORES)
    chunk.last.revision = count + STORES
    chunk.stores.extend(store_to_pb(Store(s, f"10.0.0.{s}:20160")) for s in range(1, STORES + 1))
    for n, region in enumerate(regions(count), start=1):
        chunk.regions.append(region_to_pb(region))
        if n % REGIONS_PER_CHUNK == 0 or n == count:
            put(file, root_pb2.RootTailResponse(outcome="bootstrap", state=chunk, more=n < count))
            chunk = root_pb2.RootState()


def write_log(file: BinaryIO, count: int) -> None:
    message = root_pb2.RootTailResponse(outcome="advance")
    events = [StoreJoined(Store(s, f"10.0.0.{s}:20160")) for s in range(1, STORES + 1)]
    order = list(regions(count))
    random.Random(1).shuffle(order)  # regions are not born in key order
    for revision, event in enumerate([*events, *map(RegionBootstrapped, order)], start=1):
        message.events.append(record_to_pb(RootRecord(RootToken(revision, 1, revision), event, 1, "bench")))
        if len(message.events) == EVENTS_PER_MESSAGE:
            put(file, message)
            message = root_pb2.RootTailResponse(outcome="advance")
    put(file, message)


def messages(file: BinaryIO) -> Iterator[root_pb2.RootTailResponse]:
    while head := file.read(_LENGTH.size):
        yield root_pb2.RootTailResponse.FromString(file.read(_LENGTH.unpack(head)[0]))


def rebuild(path: str) -> ClusterView:
    view = ClusterView()
    assembler = StateAssembler(gc.freeze)
    with open(path, "rb") as file:
        for message in messages(file):
            if message.outcome == "advance":
                view.advance([record_from_pb(event) for event in message.events])
                continue
            assembler.add(message.state)
            if not message.more:
                view.reset(assembler.finish())
    return view


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def current_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def per_call_us(call: object, keys: list[bytes]) -> tuple[float, float]:
    """(mean, 99th percentile)."""
    clock = time.perf_counter_ns
    taken = []
    for one in keys:
        start = clock()
        call(one)  # type: ignore[operator]
        taken.append(clock() - start)
    taken.sort()
    return sum(taken) / len(taken) / 1e3, taken[len(taken) * 99 // 100] / 1e3


def measure(path: str, count: int) -> dict[str, float]:
    empty = current_mib()
    started, cpu = time.perf_counter(), time.process_time()
    view = rebuild(path)
    took, busy = time.perf_counter() - started, time.process_time() - cpu
    assert len(view.truth.ranges) == count
    truth_only = current_mib()
    started = time.perf_counter()
    for region in view.truth.regions.values():
        view.region_heartbeat(region, region.peers[0], term=5, applied_index=100, now_ns=1)
    beats = time.perf_counter() - started
    dice = random.Random(7)
    keys = [key(dice.randrange(count)) + b"/x" for _ in range(100_000)]
    find = per_call_us(view.truth.region_by_key, keys)
    route = per_call_us(view.route_by_key, keys)
    for store in range(1, STORES + 1):
        view.store_heartbeat(store, region_count=0, leader_count=0, used_bytes=0, mode="", now_ns=1, now_ms=1)
    scheduler = Scheduler()
    scheduler.begin(1)
    started = time.perf_counter()
    for store in range(1, STORES + 1):
        scheduler.operations_for(store, view, 2, 2)
    schedule_us = (time.perf_counter() - started) / STORES * 1e6
    started = time.perf_counter()
    gc.collect()
    return {
        "regions": count,
        "rebuild_s": round(took, 2),
        "rebuild_cpu_s": round(busy, 2),
        "heartbeats_per_s": round(count / beats),
        "find_us": round(find[0], 2),
        "find_p99_us": round(find[1], 2),
        "route_us": round(route[0], 2),
        "route_p99_us": round(route[1], 2),
        "schedule_us_per_store": round(schedule_us, 1),
        "full_gc_s": round(time.perf_counter() - started, 3),
        "truth_mib": round(truth_only - empty),
        "with_leaders_mib": round(current_mib() - empty),
        "peak_rss_mib": round(peak_mib()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=int, default=1_000_000)
    parser.add_argument("--source", choices=("state", "log"), default="state")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--read", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        with open(options.write, "wb") as file:
            (write_state if options.source == "state" else write_log)(file, options.regions)
        return
    if options.read:
        print(json.dumps(measure(options.read, options.regions)))
        return
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "truth")
        again = [sys.executable, "-m", "bench.scale_control", "--source", options.source]
        again += ["--regions", str(options.regions)]
        subprocess.run([*again, "--write", path], check=True)
        size = os.path.getsize(path)
        out = subprocess.run([*again, "--read", path], check=True, stdout=subprocess.PIPE, text=True).stdout
    figures = {"source": options.source, "source_mib": size >> 20, **json.loads(out)}
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
