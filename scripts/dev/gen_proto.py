"""Generate `nokv/pb` from `proto/nokv/pb`. Needs grpcio-tools 1.75.1: newer ones emit code that refuses older runtimes.

    python scripts/dev/gen_proto.py            write nokv/pb
    python scripts/dev/gen_proto.py --out DIR  write DIR/nokv/pb instead (the staleness test compares the two)

The protos lie in proto/nokv/pb so that the generated imports read `from nokv.pb import ...` and the file names in the
process-wide descriptor pool cannot collide with another package's `meta.proto`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def generate(out: Path) -> None:
    """Write the modules below `out`/nokv/pb. Raises SystemExit if protoc refuses."""
    import grpc_tools
    from grpc_tools import protoc

    (out / "nokv" / "pb").mkdir(parents=True, exist_ok=True)
    arguments = [
        "protoc",
        f"-I{ROOT / 'proto'}",
        f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--pyi_out={out}",
        *sorted(str(p) for p in (ROOT / "proto" / "nokv" / "pb").glob("*.proto")),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT)
    generate(parser.parse_args().out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
