"""What a data command works on: a directory or a cluster. And how keys and values are written on the command line.

Keys and values: plain text (UTF-8), `hex:6b6579` or `0x6b6579`, `b64:a2V5`, `@file` (its content), `-` (standard input;
values only). `text:` in front takes the rest literally.
"""

from __future__ import annotations

import base64
import binascii
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nokv.errors import Locked, UsageError
from nokv.literal import parse_literal

if TYPE_CHECKING:
    from nokv.cli.launcher import LocalCluster
    from nokv.rpc.tls import Tls

__all__ = [
    "Target",
    "coordinators_of",
    "current_tls",
    "current_tls_dir",
    "load_cluster",
    "open_directory",
    "open_target",
    "parse_bytes",
    "target_options",
    "tls_option",
]

_F = TypeVar("_F", bound=Callable[..., Any])
_TLS_DIR = "nokv.cli.tls_dir"


class Target:
    """Exactly one of `workdir` and `coordinators` is set; `family` only with a directory."""

    def __init__(self, workdir: str | None, coordinators: list[str], family: str | None = None) -> None:
        self.workdir = workdir
        self.coordinators = coordinators
        self.family = family


def tls_option(function: _F) -> _F:
    """`--tls-dir` of a command that connects; it asks `current_tls()`."""

    def remember(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.meta[_TLS_DIR] = value

    return click.option(
        "--tls-dir",
        type=click.Path(),
        envvar="NOKV_TLS_DIR",
        expose_value=False,
        callback=remember,
        help="Connect with the certificate in this directory.  [env: NOKV_TLS_DIR]",
    )(function)


def current_tls_dir() -> str | None:
    """`--tls-dir` of the command that runs, or that of the local cluster that `--dir` named."""
    ctx = click.get_current_context(silent=True)
    return None if ctx is None else ctx.meta.get(_TLS_DIR)


def current_tls() -> Tls | None:
    from nokv.rpc.tls import load_tls

    return load_tls(current_tls_dir())


def load_cluster(directory: str) -> LocalCluster:
    """The local cluster of `--dir`. If it was started with TLS, this command connects with its client certificate."""
    from nokv.cli.launcher import LocalCluster

    cluster = LocalCluster.load(directory)
    ctx = click.get_current_context(silent=True)
    if ctx is not None and cluster.client_tls_dir is not None:
        ctx.meta.setdefault(_TLS_DIR, cluster.client_tls_dir)
    return cluster


def target_options(function: _F) -> _F:
    """`--workdir`, `--family`, `--coordinator`, `--dir`, `--tls-dir`; the command gets one argument, `target`."""

    def collect(**kwargs: Any) -> Any:
        workdir = kwargs.pop("workdir")
        coordinators = kwargs.pop("coordinator")
        directory = kwargs.pop("directory")
        family = kwargs.pop("family")
        return function(target=_choose(workdir, coordinators, directory, family), **kwargs)

    collect.__name__ = function.__name__
    collect.__doc__ = function.__doc__
    collect.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(
        [
            click.option("--workdir", type=click.Path(), help="Work on this directory, without a server."),
            click.option("--family", help="Of the directory: this family instead of the plain one."),
            coordinator_option,
            click.option("--dir", "directory", type=click.Path(), help="Work on the local cluster of this directory."),
        ]
    ):
        collect = option(collect)
    collect = tls_option(collect)
    return collect  # type: ignore[return-value]


coordinator_option = click.option(
    "--coordinator",
    "--coordinator-addr",
    "--pd-addr",
    "coordinator",
    multiple=True,
    metavar="HOST:PORT",
    help="Work on the cluster of this coordinator (repeatable).  [env: NOKV_COORDINATOR]",
)


def _choose(
    workdir: str | None, coordinators: tuple[str, ...], directory: str | None, family: str | None = None
) -> Target:
    if sum((workdir is not None, bool(coordinators), directory is not None)) > 1:
        raise UsageError("--workdir, --coordinator and --dir exclude each other", hint="give one of them")
    if workdir is not None:
        return Target(workdir, [], family)
    if family is not None:
        raise UsageError("--family is for a directory", hint="leave it out, or name one with --workdir")
    found = coordinators_of(coordinators, directory)
    if not found:
        raise UsageError(
            "nothing to work on", hint="--workdir DIRECTORY, or --coordinator HOST:PORT, or --dir CLUSTER_DIRECTORY"
        )
    return Target(None, found)


def coordinators_of(coordinators: tuple[str, ...], directory: str | None = None) -> list[str]:
    """From the options, a local cluster's description, or NOKV_COORDINATOR; empty if none says anything."""
    if directory is not None:
        return load_cluster(directory).coordinator_addresses
    texts = coordinators or tuple(filter(None, [os.environ.get("NOKV_COORDINATOR", "")]))
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


@contextmanager
def open_directory(workdir: str, *, write: bool) -> Iterator[Any]:
    """A directory without a server; never creates one. Looking at it changes nothing, and works in any mode, also while
    somebody writes it."""
    import nokv
    from nokv.engine.mode import read_mode
    from nokv.env.files import OsFiles
    from nokv.migrate.plan import require_directory

    files = OsFiles()
    require_directory(workdir, files)
    mode = read_mode(workdir, files).mode
    try:
        opened = (
            nokv.open(workdir, create=False) if write else nokv.open(workdir, create=False, read_only=True, mode=mode)
        )
    except Locked as error:
        if mode != "cluster":
            raise
        hint = "it is being served: ask the cluster (--coordinator, --dir), or the process (stats --expvar)"
        raise Locked(str(error), hint=hint) from None
    with opened as db:
        yield db


class _Family:
    """One family with the verbs of a database that commands use."""

    def __init__(self, db: Any, name: str, create: bool) -> None:
        self._db = db
        self._family = family = db.family(name, create=create)
        self.get, self.put, self.delete, self.put_many = family.get, family.put, family.delete, family.put_many
        self.scan, self.iterator = family.scan, family.iterator
        self.sync, self.families, self.expiring = db.sync, db.families, db.expiring

    @contextmanager
    def write_batch(self) -> Iterator[_Family]:
        with self._db.write_batch() as batch:
            family = self._family
            bound = object.__new__(_Family)
            bound.put = lambda key, value, **when: batch.put(key, value, family, **when)
            yield bound


@contextmanager
def open_target(target: Target, *, write: bool, timeout_s: float, create_family: bool = False) -> Iterator[Any]:
    """Something with get, put, delete and scan."""
    import nokv

    if target.workdir is not None:
        from nokv.engine.mode import read_mode
        from nokv.env.files import OsFiles
        from nokv.errors import ModeError

        if Path(target.workdir).is_dir() and (mode := read_mode(target.workdir, OsFiles()).mode) != "standalone":
            raise ModeError(
                f"{target.workdir} is {mode}: its data is read through its cluster",
                mode=mode,
                hint=f"nokv migrate status --workdir {target.workdir}, or use --coordinator",
            )
        with open_directory(target.workdir, write=write) as db:
            yield db if target.family is None else _Family(db, target.family, create_family)
        return
    client = nokv.connect(target.coordinators, timeout_s=timeout_s, tls_dir=current_tls_dir())
    try:
        yield client
    finally:
        client.close()


def parse_bytes(text: str, what: str, *, stdin: bool = False) -> bytes:
    """The grammar of the module docstring. UsageError says what is wrong; a file that cannot be read is OSError."""
    kind, _, rest = text.partition(":")
    try:
        if kind == "hex":
            return bytes.fromhex(rest)
        if text[:2] in ("0x", "0X"):
            return bytes.fromhex(text[2:])
        if kind == "b64":
            return base64.b64decode(rest, validate=True)
    except (ValueError, binascii.Error) as error:
        raise UsageError(f"{what} {text!r}: {error}", hint=f"write text:{text} to mean it literally") from None
    if kind == "text":
        return rest.encode("utf-8", "surrogateescape")
    if text.startswith('b"') and text.endswith('"') and len(text) > 2:  # as tables print bytes
        return parse_literal(text)
    if text.startswith("@") and len(text) > 1:
        return Path(text[1:]).read_bytes()
    if text == "-" and stdin:
        return sys.stdin.buffer.read()
    return text.encode("utf-8", "surrogateescape")
