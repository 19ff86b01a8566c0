"""Turn a pytest-benchmark JSON file into a Markdown table: a row each, an engine a column, our ratio to the best peer.

python -m bench.report artifacts/bench.json
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

OURS = "nokv"


def rates(benchmarks: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """row -> engine -> operations per second (median round). Rows that count no operations have no peer: left out."""
    table: dict[str, dict[str, float]] = {}
    for entry in benchmarks:
        if "operations" not in entry["extra_info"]:
            continue
        engine = entry["extra_info"].get("engine") or entry["param"] or OURS
        per_second = entry["extra_info"]["operations"] / entry["stats"]["median"]
        table.setdefault(entry["group"], {})[engine] = per_second
    return table


def human(rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate / 1e6:.2f}M" if rate >= 1e6 else f"{rate / 1e3:.0f}k" if rate >= 1e4 else f"{rate:,.0f}"


def markdown(document: dict[str, Any]) -> str:
    table = rates(document["benchmarks"])
    engines = sorted({e for row in table.values() for e in row}, key=lambda e: (e != OURS, e))
    lines = [
        "| operations/s | " + " | ".join(engines) + " | ours / best peer |",
        "|---|" + "--:|" * (len(engines) + 1),
    ]
    for row, have in table.items():
        peers = [rate for engine, rate in have.items() if engine != OURS]
        ratio = f"{have[OURS] / max(peers):.2f}x" if peers and OURS in have else "-"
        lines.append(f"| {row} | " + " | ".join(human(have.get(e)) for e in engines) + f" | {ratio} |")
    machine = document["machine_info"]
    lines += [
        "",
        f"{document['datetime'][:10]}, {machine['cpu'].get('brand_raw') or machine['machine']}, "
        f"{machine['cpu'].get('count')} cores, Python {machine.get('python_version', platform.python_version())}; "
        "medians, one run, all engines in turn.",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    print(markdown(json.loads(parser.parse_args().file.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
