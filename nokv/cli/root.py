"""`nokv root log | snapshot | status`: read the truth plane."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from nokv.cli.client import RootAdmin, first_answer
from nokv.cli.main import LazyGroup
from nokv.cli.output import emit, emit_rows, output_option, table
from nokv.errors import NotLeader, UsageError

__all__ = ["root"]

PAGE = 500
COMMANDS = {
    "log": ("nokv.cli.root:log", "The typed events, oldest first."),
    "snapshot": ("nokv.cli.root:snapshot", "The state that folds them."),
    "status": ("nokv.cli.root:status", "Each peer: leader, term, indexes."),
}
_F = TypeVar("_F", bound=Callable[..., Any])


@click.group(cls=LazyGroup, lazy=COMMANDS)
def root() -> None:
    """The rooted log of the meta-root."""


def root_options(function: _F) -> _F:
    function = click.option("--dir", "directory", type=click.Path(), help="A local cluster.")(function)
    return click.option("--addr", multiple=True, metavar="HOST:PORT", help="A meta-root peer (repeatable).")(function)


def _addresses(addr: tuple[str, ...], directory: str | None) -> list[str]:
    if directory is not None:
        from nokv.cli.launcher import LocalCluster

        cluster = LocalCluster.load(directory)
        return [*addr, *(r.address for r in cluster.role("meta-root"))]
    if not addr:
        raise UsageError("no meta-root to ask", hint="--addr HOST:PORT, or --dir of a local cluster")
    return list(addr)


def message_json(message: Any) -> dict[str, Any]:
    """A protobuf message as plain values: only set fields, bytes and enums readable."""
    answer: dict[str, Any] = {}
    for field, value in message.ListFields():
        repeated = field.is_repeated
        values = value if repeated else [value]
        if field.message_type is not None:
            plain: list[Any] = [message_json(v) for v in values]
        elif field.enum_type is not None:
            plain = [_enum(field.enum_type.values_by_number[v].name) for v in values]
        elif field.type == field.TYPE_BYTES:
            plain = [{"b64": base64.b64encode(v).decode("ascii")} for v in values]
        else:
            plain = list(values)
        answer[field.name] = plain if repeated else plain[0]
    return answer


def _enum(name: str) -> str:
    for prefix in ("ROOT_EVENT_", "PEER_ROLE_", "REGION_STATE_", "STORE_STATE_"):
        if name.startswith(prefix):
            return name[len(prefix) :].lower().replace("_", "-")
    return name.lower()


@click.command()
@root_options
@click.option("--from", "from_revision", type=click.IntRange(0), default=0, help="First revision.")
@click.option("--limit", type=click.IntRange(0), default=0, help="At most so many events; 0 = all.")
@click.option("--kind", default="", help="Only events whose kind contains this, for example lease.")
@output_option
def log(addr: tuple[str, ...], directory: str | None, from_revision: int, limit: int, kind: str, output: str) -> None:
    """The typed events of the rooted log, oldest first."""
    addresses = _addresses(addr, directory)

    def rows() -> Iterator[dict[str, Any]]:
        following, count = from_revision, 0
        while True:
            at = following

            def ask(address: str, at: int = at) -> Any:
                with RootAdmin(address) as peer:
                    return peer.read(at, PAGE)

            answer = first_answer(addresses, ask)
            for event in answer.events:
                row = message_json(event)
                following = event.token.revision + 1
                if kind not in row.get("kind", ""):
                    continue
                yield row
                count += 1
                if limit and count >= limit:
                    return
            if not answer.events or following > answer.last.revision:
                return

    def human(row: dict[str, Any]) -> str:
        token = row.get("token", {})
        rest = {k: v for k, v in row.items() if k not in ("token", "kind", "time_ms")}
        details = " ".join(f"{name}={value}" for name, value in rest.items())
        return f"{token.get('revision', 0):>6}  {row.get('kind', '?'):<26} {details}"

    emit_rows("root-log", rows(), output, human)


@click.command()
@root_options
@click.option("--stale", is_flag=True, help="What that peer knows, without asking the quorum.")
@output_option
def snapshot(addr: tuple[str, ...], directory: str | None, stale: bool, output: str) -> None:
    """The state that folds the log; equal to a replay of `nokv root log`."""
    addresses = _addresses(addr, directory)

    def ask(address: str) -> Any:
        for _ in range(3):
            with RootAdmin(address) as peer:
                try:
                    return peer.snapshot(linearizable=not stale)
                except NotLeader as error:
                    if not error.address:
                        raise
                    address = error.address
        raise NotLeader("the meta-root keeps changing its leader")

    state = message_json(first_answer(addresses, ask).state)
    emit("root-snapshot", {"state": state}, output, lambda p: table(["field", "value"], list(p["state"].items())))


@click.command()
@root_options
@output_option
def status(addr: tuple[str, ...], directory: str | None, output: str) -> None:
    """Each meta-root peer: who leads, term, indexes. Exit code 5 if none answers."""
    from nokv.errors import NoKVError

    addresses = _addresses(addr, directory)
    peers: list[dict[str, Any]] = []
    last: NoKVError | None = None
    for address in addresses:
        try:
            with RootAdmin(address) as peer:
                peers.append({"address": address, **message_json(peer.status())})
        except NoKVError as error:
            last = error
            peers.append({"address": address, "error": str(error)})
    if last is not None and all("error" in peer for peer in peers):
        raise last
    emit(
        "root-status",
        {"peers": peers},
        output,
        lambda p: table(
            ["address", "node", "leader", "term", "commit", "applied", "revision"],
            [
                (
                    x["address"],
                    x.get("node_id", x.get("error", "-")),
                    x.get("leader_id", "-"),
                    x.get("term", "-"),
                    x.get("commit_index", "-"),
                    x.get("applied_index", "-"),
                    x.get("last", {}).get("revision", "-"),
                )
                for x in p["peers"]
            ],
        ),
    )
