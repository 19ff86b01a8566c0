"""`nokv-shell`: the program. A prompt on a terminal; else -c, -f or stdin, without prompt, colour or banner."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nokv.errors import NoKVError

if TYPE_CHECKING:
    from nokv_shell.session import Session, Target

__all__ = ["main"]

MISSING = "nokv-shell needs packages that are not installed ({name}): pip install 'nokv[shell]'"


def main() -> int:
    """Entry point. Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 refused, 5 unavailable, 6 corrupt, 130 ^C."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its own lines about failed handshakes; we say why ourselves
    missing = [name for name in ("click", "prompt_toolkit", "pygments") if importlib.util.find_spec(name) is None]
    if missing:
        print(MISSING.format(name=", ".join(missing)), file=sys.stderr)
        return 2
    from nokv_shell.program import program

    return int(program(standalone_mode=True) or 0)


def open_target(text: str, tls_dir: str | None = None) -> Target:
    """`nokv://HOST:PORT[,HOST:PORT]` is a cluster by its coordinators, anything else a directory."""
    if text.startswith("nokv://"):
        try:
            from nokv_shell.cluster import ClusterTarget
        except ModuleNotFoundError as error:
            from nokv.errors import UsageError

            raise UsageError(f"a cluster target needs {error.name}", hint="pip install 'nokv[shell]'") from None
        coordinators = [part for part in text.removeprefix("nokv://").rstrip("/").split(",") if part]
        return ClusterTarget(coordinators, tls_dir=tls_dir)
    from nokv_shell.directory import DirectoryTarget

    return DirectoryTarget(text)


def report(error: NoKVError) -> None:
    """One line what, one line what next, on stderr. Never a raw control character."""
    for prefix, text in (("error: ", str(error)), ("hint: ", error.hint)):
        if text:
            shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
            print(prefix + shown, file=sys.stderr)


def run_lines(session: Session, lines: Iterable[str], *, stop_on_error: bool = True) -> int:
    """Run lines without a terminal. The exit code is that of the first error (and the last line run, if that stops)."""
    code = 0
    for line in lines:
        try:
            if not session.run(line.rstrip("\n")):
                break
        except NoKVError as error:
            report(error)
            code = code or error.exit_code
            if stop_on_error:
                break
    return code


def read_script(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()


if __name__ == "__main__":
    sys.exit(main())
