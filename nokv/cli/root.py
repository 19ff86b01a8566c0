"""`nokv root log | snapshot | status | verify | audit | transitions`: read the truth plane."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nokv.cli.main import LazyGroup
from nokv.cli.output import emit, emit_rows, output_option, table
from nokv.cli.target import current_tls, load_cluster, tls_option
from nokv.client.operator.client import RootAdmin, first_answer
from nokv.errors import InvariantError, NotLeader, PreconditionFailed, UsageError
from nokv.literal import format_literal

if TYPE_CHECKING:
    from nokv.metaroot.events import RootRecord
    from nokv.metaroot.state import RootState

__all__ = ["root"]

PAGE = 500
COMMANDS = {
    "log": ("nokv.cli.root:log", "The typed events, oldest first."),
    "snapshot": ("nokv.cli.root:snapshot", "The state that folds them."),
    "status": ("nokv.cli.root:status", "Each peer: leader, term, indexes."),
    "verify": ("nokv.cli.root:verify", "Is the state what the log folds to?"),
    "audit": ("nokv.cli.root:audit", "Do the four guarantees of the lease hold in the log?"),
    "transitions": ("nokv.cli.root:transitions", "Planned changes and how they ended."),
}
_F = TypeVar("_F", bound=Callable[..., Any])


@click.group(cls=LazyGroup, lazy=COMMANDS)
def root() -> None:
    """The rooted log of the meta-root."""


def root_options(function: _F) -> _F:
    function = tls_option(function)
    function = click.option("--dir", "directory", type=click.Path(), help="A local cluster.")(function)
    return click.option("--addr", multiple=True, metavar="HOST:PORT", help="A meta-root peer (repeatable).")(function)


workdir_option = click.option("--workdir", type=click.Path(), help="The directory of a stopped meta-root.")


def _addresses(addr: tuple[str, ...], directory: str | None) -> list[str]:
    if directory is not None:
        cluster = load_cluster(directory)
        return [*addr, *(r.address for r in cluster.role("meta-root"))]
    if not addr:
        raise UsageError("no meta-root to ask", hint="--addr HOST:PORT, or --dir of a local cluster")
    return list(addr)


def message_json(message: Any) -> dict[str, Any]:
    """A protobuf message as plain values: only set fields, bytes and enums readable."""
    answer: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            answer[field.name] = dict(value)  # of numbers: the only maps there are
            continue
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


def _compact(value: Any) -> str:
    """A plain value of `message_json` on one line for people: regions, peers and bytes in short form."""
    if isinstance(value, list):
        return ",".join(_compact(part) for part in value) or "-"
    if not isinstance(value, dict):
        return str(value)
    if set(value) == {"b64"}:
        return format_literal(base64.b64decode(value["b64"]))
    if "peer_id" in value and set(value) <= {"peer_id", "store_id", "role"}:
        learner = "(learner)" if value.get("role") == "learner" else ""
        return f"{value.get('store_id', 0)}:{value['peer_id']}{learner}"
    if "region_id" in value and "epoch" in value:
        start, end = (_compact(value[side]) if side in value else "-" for side in ("start_key", "end_key"))
        epoch, peers = value["epoch"], _compact(value.get("peers", []))
        versions = f"conf {epoch.get('conf_version', 0)} version {epoch.get('version', 0)}"
        return f"{value['region_id']} [{start}, {end}) {versions} peers {peers}"
    return "{" + " ".join(f"{name} {_compact(part)}" for name, part in value.items()) + "}"


@click.command()
@root_options
@click.option("--from", "from_revision", type=click.IntRange(0), default=0, help="First revision.")
@click.option("--limit", type=click.IntRange(0), default=0, help="At most so many events; 0 = all.")
@click.option("--kind", default="", help="Only events whose kind contains this; lease: also hand-overs.")
@output_option
def log(addr: tuple[str, ...], directory: str | None, from_revision: int, limit: int, kind: str, output: str) -> None:
    """The typed events of the rooted log, oldest first."""
    addresses = _addresses(addr, directory)
    wanted = ("lease", "handoff") if kind == "lease" else (kind,)  # an era's life: grant, seal, confirm, close

    def rows() -> Iterator[dict[str, Any]]:
        following, count = from_revision, 0
        while True:
            at = following

            def ask(address: str, at: int = at) -> Any:
                with RootAdmin(address, tls=current_tls()) as peer:
                    return peer.read(at, PAGE)

            answer = first_answer(addresses, ask)
            for event in answer.events:
                row = message_json(event)
                following = event.token.revision + 1
                if not any(part in row.get("kind", "") for part in wanted):
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
        details = " ".join(f"{name} {_compact(value)}" for name, value in rest.items())
        return f"{token.get('revision', 0):>6}  {row.get('kind', '?'):<26} {details}"

    emit_rows("root-log", rows(), output, human)


def _snapshot(addresses: list[str], *, linearizable: bool = True) -> Any:
    """The state as a message, from the leader if it has to be sure."""

    def ask(address: str) -> Any:
        for _ in range(3):
            with RootAdmin(address, tls=current_tls()) as peer:
                try:
                    return peer.snapshot(linearizable=linearizable).state
                except NotLeader as error:
                    if not error.address:
                        raise
                    address = error.address
        raise NotLeader("the meta-root keeps changing its leader")

    return first_answer(addresses, ask)


@click.command()
@root_options
@click.option("--stale", is_flag=True, help="What that peer knows, without asking the quorum.")
@output_option
def snapshot(addr: tuple[str, ...], directory: str | None, stale: bool, output: str) -> None:
    """The state that folds the log; equal to a replay of `nokv root log`."""
    addresses = _addresses(addr, directory)

    state = message_json(_snapshot(addresses, linearizable=not stale))
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
            with RootAdmin(address, tls=current_tls()) as peer:
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


def _records(addresses: list[str], last: int) -> Iterator[Any]:
    """Every record that is kept, oldest first, up to revision `last`; waits for a replica that is behind by asking
    another."""
    from nokv.errors import Unavailable
    from nokv.metaroot.wire import record_from_pb

    following = 0
    while following <= last:

        def ask(address: str, at: int = following) -> Any:
            with RootAdmin(address, tls=current_tls()) as peer:
                answer = peer.read(at, PAGE)
            if not answer.events and answer.last.revision < last:
                raise Unavailable(f"{address} is behind: at revision {answer.last.revision} of {last}")
            return answer

        answer = first_answer(addresses, ask)
        for event in answer.events:
            if event.token.revision > last:
                return
            yield record_from_pb(event)
            following = event.token.revision + 1
        if not answer.events:
            return


@click.command()
@root_options
@workdir_option
@output_option
def verify(addr: tuple[str, ...], directory: str | None, workdir: str | None, output: str) -> None:
    """Fold the whole log anew and compare with the state that the meta-root serves.

    Exit code 0 only if they are equal. A log whose beginning is no longer kept cannot be folded: the command says so.
    """
    from nokv.metaroot.audit import verify as verify_state

    state, records, extra = _truth(addr, directory, workdir)
    first = records[0].token.revision - records[0].folded if records else 0
    payload: dict[str, Any] = {
        "revision": state.last.revision,
        "first_revision": first,
        "events": len(records),
        "folded": sum(record.folded for record in records),
        **extra,
    }
    if state.last.revision and first != 1:
        emit("root-verify", {**payload, "verdict": "truncated", "differences": []}, output, lambda p: p["verdict"])
        raise PreconditionFailed(
            f"the log was truncated: it starts at revision {first}, so that the state cannot be folded from it",
            hint="nokv root audit checks what is kept",
        )
    found = verify_state(records, state)
    payload |= {"verdict": "differs" if found.differences else "equal", "differences": found.differences}
    emit(
        "root-verify",
        payload,
        output,
        lambda p: (
            f"the state at revision {p['revision']} "
            + ("differs from" if p["differences"] else "equals")
            + f" the fold of all {p['events']} events"
            + (f" and {p['folded']} superseded ones" if p["folded"] else "")
            + "".join(f"\n  differs: {name}" for name in p["differences"])
            + _stopped_text(p)
        ),
    )
    if found.differences:
        raise InvariantError(f"state and log differ in {', '.join(found.differences)}")


@click.command()
@root_options
@workdir_option
@output_option
def audit(addr: tuple[str, ...], directory: str | None, workdir: str | None, output: str) -> None:
    """Check primacy, inheritance, silence and finality over the kept log. Exit code 0 only if all four hold."""
    from nokv.metaroot.audit import GUARANTEES
    from nokv.metaroot.audit import audit as audit_records

    _, records, extra = _truth(addr, directory, workdir)
    found = audit_records(records)
    payload = {
        "complete": found.complete,
        "first_revision": found.first_revision,
        "last_revision": found.last_revision,
        "folded": found.folded,
        "eras": found.eras,
        "handovers": found.handovers,
        "open_handover": found.open_handover,
        "guarantees": [
            {"name": name, "means": means, "holds": not found.problems[name], "problems": found.problems[name]}
            for name, means in GUARANTEES.items()
        ],
        **extra,
    }
    emit("root-audit", payload, output, _audit_text)
    if not found.holds:
        raise InvariantError("the rooted log breaks a guarantee")


def _audit_text(payload: dict[str, Any]) -> str:
    lines = [
        f"revisions {payload['first_revision']} to {payload['last_revision']}"
        + ("" if payload["complete"] else " (older events are no longer kept)")
        + (f" ({payload['folded']} superseded fences and renewals are folded away)" if payload["folded"] else "")
        + f": {payload['eras']} eras granted, {payload['handovers']} hand-overs"
        + (f", the one into era {payload['open_handover']} is under way" if payload["open_handover"] else "")
    ]
    for guarantee in payload["guarantees"]:
        lines.append(f"{'holds' if guarantee['holds'] else 'BROKEN':7} {guarantee['name']:12} {guarantee['means']}")
        lines += [f"        {problem}" for problem in guarantee["problems"]]
    return "\n".join(lines) + _stopped_text(payload)


def _truth(
    addr: tuple[str, ...], directory: str | None, workdir: str | None
) -> tuple[RootState, list[RootRecord], dict[str, Any]]:
    """(state, kept records, what else is to be said): of a running meta-root, or of the directory of a stopped one."""
    from nokv.env.files import OsFiles
    from nokv.metaroot.directory import read_stopped
    from nokv.metaroot.wire import state_from_pb

    if workdir is None:
        addresses = _addresses(addr, directory)
        state = state_from_pb(_snapshot(addresses))
        return state, list(_records(addresses, state.last.revision)), {"source": "running"}
    if addr or directory is not None:
        raise UsageError("either --workdir of a stopped meta-root, or the address of running ones")
    found = read_stopped(workdir, OsFiles())
    extra: dict[str, Any] = {
        "source": "stopped",
        "node_id": found.node_id,
        "members": list(found.members),
        "undecided": found.undecided,
        "damage": [str(error) for error in found.damage],
    }
    return found.state, found.records, extra


def _stopped_text(payload: dict[str, Any]) -> str:
    if payload["source"] != "stopped":
        return ""
    lines = [f"\nof meta-root {payload['node_id']} of {payload['members']}, stopped"]
    if payload["undecided"]:
        lines.append(f"{payload['undecided']} entries behind these are not known here to be committed")
    lines += [f"passed over: {damage}" for damage in payload["damage"]]
    return "\n".join(lines)


@click.command()
@root_options
@output_option
def transitions(addr: tuple[str, ...], directory: str | None, output: str) -> None:
    """Changes of regions by their ids, which name the same change the same way every time: planned, or how they
    ended."""
    from nokv.metaroot.changes import transitions as list_transitions
    from nokv.metaroot.wire import state_from_pb

    state = state_from_pb(_snapshot(_addresses(addr, directory)))
    rows: list[dict[str, Any]] = [
        {
            "transition_id": change.transition_id,
            "kind": change.kind,
            "region_id": change.region_id,
            "phase": change.phase.value,
            "revision": change.revision,
        }
        for change in list_transitions(state)
    ]
    emit(
        "root-transitions",
        {"transitions": rows},
        output,
        lambda p: table(
            ["transition", "region", "phase", "ended at revision"],
            [(r["transition_id"], r["region_id"], r["phase"], r["revision"] or "-") for r in p["transitions"]],
        ),
    )
