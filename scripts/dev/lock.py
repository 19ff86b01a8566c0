"""Write `requirements/*.txt`: exact versions of all that pyproject.toml asks for, transitively, as installed here.

    python scripts/dev/lock.py            write the files
    python scripts/dev/lock.py --check    say which would change, exit 1 if any

To move a dependency: install the new version into .venv, run the tests, run this, commit the difference.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
OWN = "nokv"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirements: Iterable[str]) -> dict[str, str]:
    """canonical name -> version, of the requirements and of all they need on this platform."""
    found: dict[str, str] = {}
    todo = [Requirement(text) for text in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        name = canonical(requirement.name)
        if name == OWN or (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise SystemExit(f"{name} is not installed here: install it first") from None
        if not requirement.specifier.contains(distribution.version, prereleases=True):
            raise SystemExit(f"{name} {distribution.version} is installed, but {requirement} is asked for")
        found[name] = distribution.version
        for text in distribution.requires or ():
            needed = Requirement(text)
            environments = [{"extra": extra} for extra in requirement.extras] or [{"extra": ""}]
            if needed.marker is None or any(needed.marker.evaluate(environment) for environment in environments):
                todo.append(needed)
    return found


def locks() -> dict[str, str]:
    """File name -> content. A later file leaves out what an earlier one of its chain already pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    groups = project["dependency-groups"]
    asked: dict[str, list[str]] = {
        "build": project["build-system"]["requires"],
        "runtime": project["project"]["dependencies"] + extras["server"] + extras["shell"],
        "test": groups["test"],
        "lint": groups["lint"] + groups["proto"],
        "bench": groups["bench"],
    }
    done: dict[str, str] = {}
    files: dict[str, str] = {}
    for name, requirements in asked.items():
        pins = {package: version for package, version in closure(requirements).items() if package not in done}
        done |= pins
        lines = [f"{package}=={pins[package]}" for package in sorted(pins)]
        files[f"{name}.txt"] = "# written by scripts/dev/lock.py\n" + "\n".join(lines) + "\n"
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = False
    for name, content in locks().items():
        path = ROOT / "requirements" / name
        if path.exists() and path.read_text() == content:
            continue
        stale = True
        if check:
            print(f"{path} is stale", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
