"""python -m nokv.testing.sim raft|control --seeds 0:200 [--mutant NAME] | raft|control --mutants [--seeds 0:500]
python -m nokv.testing.sim lease [--states 200000]"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from multiprocessing import get_context
from typing import Any

from nokv.testing.sim.lease import SETTINGS, VARIANTS, Setting, explore
from nokv.testing.sim.seeds import SYSTEMS, first_found, run_seed

LEASE_DEPTH_MAX = 40


def _seeds(text: str) -> range:
    first, _, last = text.partition(":")
    return range(int(first), int(last) if last else int(first) + 1)


def _replay(system: str, seed: int, mutant: str) -> str:
    return f"python -m nokv.testing.sim {system} --seeds {seed}:{seed + 1}" + (f" --mutant {mutant}" if mutant else "")


@contextmanager
def _mapper(processes: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map` in order over this process, or over several: each seed is a world of its own."""
    if processes <= 1:
        yield map
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield lambda call, *items: pool.map(call, *items, chunksize=4 if call is run_seed else 1)


def run_seeds(system: str, seeds: range, mutant: str, *, twice: bool, processes: int = 1) -> int:
    """Exit code: 0 if no invariant was violated."""
    started = time.perf_counter()
    faults: dict[str, int] = {}
    failed = errors = events = operations = 0
    with _mapper(min(processes, len(seeds) // 8)) as run:
        for outcome in run(run_seed, repeat(system), seeds, repeat(mutant), repeat(twice)):
            report = outcome.report
            if report is None:
                failed += 1
                errors += bool(outcome.error)
                what = f"ERROR, not a violation\n{outcome.error}" if outcome.error else outcome.violation
                print(f"seed {outcome.seed}: {what}\n  replay: {_replay(system, outcome.seed, mutant)}", flush=True)
                continue
            events += report.events
            operations += report.operations
            for kind, count in report.faults.items():
                faults[kind] = faults.get(kind, 0) + count
            if len(seeds) <= 4:
                print(f"seed {outcome.seed}: trace {report.trace:08x}, {report}")
    elapsed = time.perf_counter() - started
    listed = " ".join(f"{kind}={count}" for kind, count in sorted(faults.items()))
    speed = len(seeds) / elapsed
    print(
        f"{len(seeds)} seeds, {failed - errors} violations, {errors} errors, {events} events, "
        f"{operations} operations checked, {speed:.1f} seeds/s\nfaults injected: {sum(faults.values())} ({listed})"
    )
    return 1 if failed else 0


def run_mutants(system: str, names: Sequence[str], seeds: range, *, processes: int = 1) -> int:
    """Print how many seeds each planted bug survives. Exit code 1 if one survives all, or if anything but a violation
    stops a schedule."""
    failed = 0
    print(f"{'mutant':28} {'seeds':>6}  found as")
    with _mapper(processes) as run:
        for found in run(first_found, repeat(system), names, repeat(seeds)):
            if found.violation:
                print(f"{found.mutant:28} {found.seeds:6}  {found.violation[:100]}", flush=True)
                continue
            failed += 1
            what = f"ERROR, not a violation: {found.error}" if found.error else f"NOT FOUND in {len(seeds)} seeds"
            print(f"{found.mutant:28} {'-':>6}  {what}", flush=True)
    return 1 if failed else 0


def run_lease(states_max: int) -> int:
    """Explore the lease in every setting, then show what each weakened protocol does wrong."""
    failed = 0
    for name, setting in SETTINGS.items():
        started = time.perf_counter()
        found = explore(setting, depth=LEASE_DEPTH_MAX, states_max=states_max)
        print(
            f"{name:24} {found.states} states, {found.transitions} transitions, every interleaving of {found.depth} "
            f"moves, {found.settled} settled, {time.perf_counter() - started:.1f} s",
            flush=True,
        )
        if found.broken is not None:
            failed = 1
            print(f"NOT SAFE: {found.broken}")
    for name, protocol in VARIANTS.items():
        found = explore(Setting(), protocol, depth=LEASE_DEPTH_MAX, states_max=states_max)
        if found.broken is None:
            failed = 1
        print(f"\nweakened: {name} ({found.states} states)\n{found.broken or 'NO COUNTEREXAMPLE'}", flush=True)
    return failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nokv.testing.sim")
    parser.add_argument("system", choices=[*SYSTEMS, "lease"])
    parser.add_argument("--seeds", type=_seeds, default=None, metavar="FIRST:END")
    parser.add_argument("--mutant", default="", help="run with this planted bug")
    parser.add_argument(
        "--mutants", action="store_true", help="how many seeds does each planted bug (or the one named) survive?"
    )
    parser.add_argument("--twice", action="store_true", help="run each seed twice and compare the traces")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1), help="run seeds side by side")
    parser.add_argument("--states", type=int, default=200_000, help="lease: look at so many states per setting")
    options = parser.parse_args(arguments)
    if options.system == "lease":
        return run_lease(options.states)
    if options.mutant and options.mutant not in SYSTEMS[options.system].mutants:
        parser.error(f"no mutant {options.mutant!r}; there are {', '.join(SYSTEMS[options.system].mutants)}")
    if options.mutants:
        names = [options.mutant] if options.mutant else SYSTEMS[options.system].mutants
        return run_mutants(options.system, names, options.seeds or range(500), processes=options.processes)
    return run_seeds(
        options.system,
        options.seeds or range(200),
        options.mutant,
        twice=options.twice,
        processes=options.processes,
    )


if __name__ == "__main__":
    sys.exit(main())
