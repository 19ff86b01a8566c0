"""The topology file: one JSON file that names meta-roots, coordinator, stores and first regions.

    { "max_retries": 5,
      "meta_root":   { "peers": [ { "node_id": 1, "addr": "...", "work_dir": "..." }, ... ] },
      "coordinator": { "addr": "...", "docker_addr": "...", "work_dir": "...", "docker_work_dir": "..." },
      "stores":      [ { "store_id": 1, "addr": "...", "docker_addr": "...", "work_dir": "..." }, ... ],
      "regions":     [ { "id": 1, "start_key": "", "end_key": "-", "peers": [ { "store_id": 1, "peer_id": 101 } ] } ] }

Two layers: addresses are always read, regions are a bootstrap seed that is read once; at run time the coordinator is
the truth about routes. Keys are text, `hex:...` or `base64:...`; empty or `-` is unbounded. An unknown field is an
error.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import itertools
import re
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from nokv.cli.launcher import Place
from nokv.cli.main import LazyGroup
from nokv.cli.output import emit, output_option
from nokv.errors import NotFound, NotSupported, UsageError

__all__ = [
    "Topology",
    "config",
    "first_region",
    "load_scoped",
    "load_topology",
    "parse_region_key",
    "places",
    "root_peer",
    "store_section",
]


class RootPeer(msgspec.Struct, forbid_unknown_fields=True):
    node_id: int
    addr: str
    docker_addr: str = ""
    work_dir: str = ""
    docker_work_dir: str = ""


class MetaRootSection(msgspec.Struct, forbid_unknown_fields=True):
    peers: list[RootPeer] = []


class CoordinatorSection(msgspec.Struct, forbid_unknown_fields=True):
    addr: str
    docker_addr: str = ""
    work_dir: str = ""
    docker_work_dir: str = ""


class StoreSection(msgspec.Struct, forbid_unknown_fields=True):
    store_id: int
    addr: str
    docker_addr: str = ""
    work_dir: str = ""
    docker_work_dir: str = ""


class RegionPeer(msgspec.Struct, forbid_unknown_fields=True):
    store_id: int
    peer_id: int


class RegionSection(msgspec.Struct, forbid_unknown_fields=True):
    id: int
    start_key: str = ""
    end_key: str = ""
    peers: list[RegionPeer] = []


class Topology(msgspec.Struct, forbid_unknown_fields=True):
    coordinator: CoordinatorSection
    stores: list[StoreSection]
    max_retries: int = 5
    meta_root: MetaRootSection = msgspec.field(default_factory=MetaRootSection)
    regions: list[RegionSection] = []


_S = TypeVar("_S", RootPeer, StoreSection)
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "$": Topology,
    "$.meta_root": MetaRootSection,
    "$.meta_root.peers[]": RootPeer,
    "$.coordinator": CoordinatorSection,
    "$.stores[]": StoreSection,
    "$.regions[]": RegionSection,
    "$.regions[].peers[]": RegionPeer,
}


def parse_region_key(text: str) -> bytes:
    """A key of the topology file. UsageError if it is malformed."""
    try:
        if text in ("", "-"):
            return b""
        if text.startswith("hex:"):
            return bytes.fromhex(text[4:])
        if text.startswith("base64:"):
            return base64.b64decode(text[7:], validate=True)
    except (ValueError, binascii.Error) as error:
        raise UsageError(f"region key {text!r}: {error}") from None
    return text.encode()


def load_topology(path: str) -> Topology:
    """NotFound, or UsageError naming the file, the place in it and what is wrong."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise NotFound(f"no topology file {path}", hint="start from raft_config.example.json") from None
    try:
        found = msgspec.json.decode(data, type=Topology)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path}: {error}", hint=_did_you_mean(str(error))) from None
    _check(found, path)
    return found


def _did_you_mean(message: str) -> str:
    """`message` of msgspec: "Object contains unknown field `adr` - at `$.stores[0]`"."""
    parts = message.split("`")
    if "unknown field" in message and len(parts) > 1:
        section = SECTIONS.get(re.sub(r"\[[^]]*\]", "[]", parts[3]) if len(parts) > 3 else "$", Topology)
        known = section.__struct_fields__
        near = difflib.get_close_matches(parts[1], known, n=1)
        return f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
    return "compare it with raft_config.example.json"


def _check(found: Topology, path: str) -> None:
    """References must lead somewhere and names must be unique; regions must not overlap."""
    for what, ids in (
        ("store_id", [store.store_id for store in found.stores]),
        ("node_id", [peer.node_id for peer in found.meta_root.peers]),
        ("region id", [region.id for region in found.regions]),
        ("peer_id", [peer.peer_id for region in found.regions for peer in region.peers]),
    ):
        twice = sorted({x for x in ids if ids.count(x) > 1})
        if twice:
            raise UsageError(f"{path}: {what} {twice[0]} appears twice")
        if any(x <= 0 for x in ids):
            raise UsageError(f"{path}: {what}s start at 1")
    stores = {store.store_id for store in found.stores}
    ranges = []
    for region in found.regions:
        for peer in region.peers:
            if peer.store_id not in stores:
                raise UsageError(f"{path}: region {region.id} names store {peer.store_id}, which is not listed")
        start, end = parse_region_key(region.start_key), parse_region_key(region.end_key)
        if end and start >= end:
            raise UsageError(f"{path}: region {region.id} ends before it starts")
        ranges.append((start, end, region.id))
    ranges.sort()
    for (_, end, first), (start, _, second) in itertools.pairwise(ranges):
        if not end or start < end:
            raise UsageError(f"{path}: regions {first} and {second} overlap")


def load_scoped(path: str, scope: str) -> Topology:
    """The file with each `addr` and `work_dir` that of `scope`: "host" or "docker"."""
    found = load_topology(path)
    if scope == "host":
        return found
    sections: list[tuple[str, RootPeer | CoordinatorSection | StoreSection]] = [
        *((f"meta_root.peers node {peer.node_id}", peer) for peer in found.meta_root.peers),
        ("coordinator", found.coordinator),
        *((f"store {store.store_id}", store) for store in found.stores),
    ]
    for what, section in sections:
        if not section.docker_addr:
            raise UsageError(f"{path}: {what} has no docker_addr", hint="give it one, or use --scope host")
        section.addr, section.work_dir = section.docker_addr, section.docker_work_dir
    return found


def root_peer(found: Topology, node_id: int) -> RootPeer:
    """NotFound names those that are there."""
    return _by_id(found.meta_root.peers, "node_id", node_id, "meta-root")


def store_section(found: Topology, store_id: int) -> StoreSection:
    return _by_id(found.stores, "store_id", store_id, "store")


def _by_id(sections: list[_S], name: str, number: int, what: str) -> _S:
    for section in sections:
        if getattr(section, name) == number:
            return section
    known = ", ".join(str(getattr(section, name)) for section in sections) or "none"
    raise NotFound(f"the topology file lists no {what} {number}", hint=f"it lists {known}")


def places(found: Topology) -> list[Place]:
    """The processes of the file, for the launcher of a local cluster (host scope)."""
    if not found.meta_root.peers:
        raise UsageError("the topology file names no meta_root.peers")
    plan = [Place("meta-root", peer.node_id, peer.addr, peer.work_dir) for peer in found.meta_root.peers]
    plan.append(Place("coordinator", 1, found.coordinator.addr, found.coordinator.work_dir))
    return plan + [Place("store", store.store_id, store.addr, store.work_dir) for store in found.stores]


def first_region(found: Topology) -> list[RegionPeer]:
    """The peers of the one region of the file: the first is the seed, the others are expanded to."""
    if not found.regions:
        return []
    region = found.regions[0]
    whole = parse_region_key(region.start_key) == parse_region_key(region.end_key) == b""
    if len(found.regions) > 1 or region.id != 1 or not whole:
        raise NotSupported(
            "a cluster begins as region 1 over the whole key space",
            hint="list one region without start_key and end_key",
        )
    if not region.peers:
        raise UsageError("region 1 has no peers")
    return region.peers


COMMANDS = {
    "check": ("nokv.cli.topology:check", "Is this topology file right?"),
    "show": ("nokv.cli.topology:show", "The file with every default filled in."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def config() -> None:
    """The topology file (raft_config.example.json)."""


file_option = click.option("--config", "path", required=True, type=click.Path(), help="The topology file.")


@click.command()
@file_option
@output_option
def check(path: str, output: str) -> None:
    """Read and check the topology file; exit code 2 with one line if it is wrong."""
    found = load_topology(path)
    payload: dict[str, Any] = {
        "path": path,
        "meta_roots": len(found.meta_root.peers),
        "stores": len(found.stores),
        "regions": len(found.regions),
    }
    emit(
        "config-check",
        payload,
        output,
        lambda p: f"{path}: ok, {p['meta_roots']} meta-roots, {p['stores']} stores, {p['regions']} regions",
    )


@click.command()
@file_option
@output_option
def show(path: str, output: str) -> None:
    """Print the topology with every default filled in."""
    found = load_topology(path)
    payload = msgspec.to_builtins(found)
    emit("config", payload, output, lambda p: msgspec.json.format(msgspec.json.encode(p), indent=2).decode())
