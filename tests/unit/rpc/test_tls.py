"""Who may talk to whom (S1), on real sockets with real certificates."""

from __future__ import annotations

import asyncio
import datetime
import shutil
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from nokv.client.transport import Coordinators
from nokv.coordinator.client import CoordinatorClient
from nokv.coordinator.server import CoordinatorConfig, CoordinatorServer
from nokv.errors import Indeterminate, NotFound, NotTrusted, PreconditionFailed, Unavailable, UsageError
from nokv.metaroot.client import RootClient, dial_with
from nokv.metaroot.events import StoreJoined
from nokv.metaroot.server import RootConfig, RootServer, ServerPorts
from nokv.pb import root_pb2, root_pb2_grpc
from nokv.raftstore.control import StoreReport
from nokv.region import Store
from nokv.rpc.certificates import init_ca, issue
from nokv.rpc.tls import Tls, load_tls, refusal
from nokv.rpc.transport import STREAMS_MAX, bind, open_blocking_channel, open_channel, peer_name, server_options

MESSAGE_BYTES_MAX = 1 << 20
NOW = datetime.datetime.now(datetime.UTC)


class WhoAmI(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def answer(_request: bytes, context: Any) -> bytes:
            return peer_name(context).encode()

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def serving(tls: Tls | None) -> AsyncIterator[str]:
    server = grpc.aio.server(options=server_options(MESSAGE_BYTES_MAX))
    server.add_generic_rpc_handlers((WhoAmI(),))
    address = bind(server, "127.0.0.1:0", tls)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)


async def ask(address: str, tls: Tls | None, request: bytes = b"") -> str:
    async with open_channel(address, (), tls) as channel:
        return bytes(await channel.unary_unary("/test/WhoAmI")(request, timeout=10.0)).decode()


async def why(address: str, tls: Tls | None) -> NotTrusted:
    """The call fails, and the reason is found."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await ask(address, tls)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    error = await asyncio.to_thread(refusal, address, tls, str(failed.value.details()))
    assert error is not None, failed.value.details()
    assert error.exit_code == 7 and error.hint and address in str(error)
    return error


async def test_a_valid_certificate_is_seen_by_the_server(identities: Path) -> None:
    tls = Tls(identities / "ca/client")
    async with serving(Tls(identities / "ca/node")) as address:
        assert await ask(address, tls) == "client"
        assert await ask(address, Tls(identities / "ca/node")) == "node"
        assert await asyncio.to_thread(refusal, address, tls, "failed to connect") is None

        def blocking() -> bytes:
            with open_blocking_channel(address, (), tls) as channel:
                return bytes(channel.unary_unary("/test/WhoAmI")(b"", timeout=10.0))

        assert await asyncio.to_thread(blocking) == b"client"


async def test_without_tls_nobody_has_a_name() -> None:
    async with serving(None) as address:
        assert await ask(address, None) == ""
        assert await asyncio.to_thread(refusal, address, None, "failed to connect") is None


@pytest.mark.parametrize("client", ["other/client", "ca/old"])
async def test_a_client_that_the_server_does_not_trust(identities: Path, client: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(identities / client, mine)
    shutil.copy(identities / "ca/ca.crt", mine)  # it trusts the server
    if client == "other/client":
        tls = Tls(mine)
    else:
        tls = Tls(identities / client)
    async with serving(Tls(identities / "ca/node")) as address:
        assert "does not accept our certificate" in str(await why(address, tls))


async def test_plain_text_to_a_tls_server(identities: Path) -> None:
    async with serving(Tls(identities / "ca/node")) as address:
        error = await why(address, None)
    assert "speaks TLS and this side does not" in str(error)
    assert "--tls-dir" in error.hint


async def test_tls_to_a_plain_text_server(identities: Path) -> None:
    async with serving(None) as address:
        assert "speaks plain text" in str(await why(address, Tls(identities / "ca/client")))


@pytest.mark.parametrize(
    ("server", "client", "says"),
    [
        ("ca/node", "other/client", "unable to get local issuer certificate"),
        ("ca/old", "ca/client", "expired"),
        ("ca/elsewhere", "ca/client", "127.0.0.1"),
        ("ca/client", "ca/node", "purpose"),  # a certificate without hosts may call, not serve
    ],
)
async def test_a_server_that_the_client_does_not_trust(identities: Path, server: str, client: str, says: str) -> None:
    async with serving(Tls(identities / server)) as address:
        error = await why(address, Tls(identities / client))
    assert "its certificate is refused" in str(error)
    assert says in str(error)


async def test_a_client_without_a_certificate_is_refused(identities: Path) -> None:
    async with serving(Tls(identities / "ca/node")) as address:
        credentials = grpc.ssl_channel_credentials((identities / "ca/ca.crt").read_bytes())
        async with grpc.aio.secure_channel(address, credentials) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await channel.unary_unary("/test/WhoAmI")(b"", timeout=10.0)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_nobody_there_is_not_a_matter_of_trust(identities: Path) -> None:
    async with serving(None) as address:
        pass
    for tls in (None, Tls(identities / "ca/client")):
        assert await asyncio.to_thread(refusal, address, tls, "failed to connect") is None


async def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path) -> None:
    init_ca(tmp_path / "ca", now=NOW)
    issue(tmp_path / "ca", "node", ["127.0.0.1"], now=NOW)
    issue(tmp_path / "ca", "client", now=NOW)
    node, client = Tls(tmp_path / "ca/node"), Tls(tmp_path / "ca/client")
    async with serving(node) as address:
        assert await ask(address, client) == "client"
        issue(tmp_path / "ca", "node", ["elsewhere.example"], renew=True, now=NOW)
        assert "elsewhere.example" in str(await why(address, client)) or "127.0.0.1" in str(await why(address, client))
        issue(tmp_path / "ca", "node", ["127.0.0.1"], renew=True, now=NOW)
        assert await ask(address, client) == "client"
        (tmp_path / "ca/node/tls.crt").write_bytes(b"half a")  # being replaced: what works goes on
        assert await ask(address, client) == "client"
        for damaged in ("tls.crt", "ca.crt"):  # nor is a failed call blamed on files that are being replaced
            (tmp_path / "ca/client" / damaged).write_bytes(b"half a")
            assert await asyncio.to_thread(refusal, address, client, "failed to connect") is None
        (tmp_path / "ca/client/ca.crt").unlink()
        assert await asyncio.to_thread(refusal, address, client, "failed to connect") is None


# -- clients of several servers ----------------------------------------------------------------------------------------
def renew(ca: Path) -> None:
    """A new CA, and certificates of it: nothing of before is worth anything."""
    for name in ("node", "client"):
        shutil.rmtree(ca / name, ignore_errors=True)
    (ca / "ca.crt").unlink(missing_ok=True)
    (ca / "ca.key").unlink(missing_ok=True)
    init_ca(ca, now=NOW)
    issue(ca, "node", ["127.0.0.1"], now=NOW)
    issue(ca, "client", now=NOW)


@asynccontextmanager
async def root_server(workdir: Path, address: str, tls: Tls | None) -> AsyncIterator[str]:
    server = RootServer(RootConfig(1, address, str(workdir)), ports=ServerPorts.over(tls))
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop()


async def test_a_client_outlives_a_change_of_every_certificate(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    renew(ca)
    tls = Tls(ca / "client")
    async with root_server(tmp_path / "root", "127.0.0.1:0", Tls(ca / "node")) as address:
        client = RootClient([address], timeout_s=20.0, dial=dial_with(tls))
        assert (await client.status()).node_id == 1
    renew(ca)
    async with root_server(tmp_path / "root", address, Tls(ca / "node")):
        assert (await client.status()).node_id == 1
    await client.close()


@asynccontextmanager
async def coordinator_server(workdir: Path, address: str, tls: Tls) -> AsyncIterator[str]:
    server = CoordinatorServer(CoordinatorConfig("c1", address, workdir=str(workdir)), ports=ServerPorts.over(tls))
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop()


async def test_heartbeats_outlive_a_change_of_every_certificate(tmp_path: Path) -> None:
    """A store calls for nothing else for days: its heartbeats themselves have to dial anew."""
    ca = tmp_path / "ca"
    renew(ca)
    tls = Tls(ca / "client")

    async def beats(client: CoordinatorClient, address: str) -> None:
        async with asyncio.timeout(20.0):
            while True:
                try:
                    await client.store_heartbeat(StoreReport(Store(1, "127.0.0.1:1")))
                    await client.status(address)
                    return
                except Unavailable:
                    await asyncio.sleep(0.05)

    async with coordinator_server(tmp_path / "c", "127.0.0.1:0", Tls(ca / "node")) as address:
        client = CoordinatorClient([address], timeout_s=5.0, dial=dial_with(tls))
        await beats(client, address)
    renew(ca)
    async with coordinator_server(tmp_path / "c", address, Tls(ca / "node")):
        await beats(client, address)
    await client.close()


async def test_one_server_that_is_not_trusted_costs_nothing_and_all_of_them_fail_at_once(
    identities: Path, tmp_path: Path
) -> None:
    node, tls = Tls(identities / "ca/node"), Tls(identities / "ca/client")
    async with (
        root_server(tmp_path / "good", "127.0.0.1:0", node) as good,
        root_server(tmp_path / "plain", "127.0.0.1:0", None) as plain,
        root_server(tmp_path / "old", "127.0.0.1:0", Tls(identities / "ca/old")) as expired,
    ):
        for addresses in ([plain, good], [expired, plain, good]):
            client = RootClient(addresses, timeout_s=20.0, dial=dial_with(tls))
            assert (await client.status()).node_id == 1
            await client.close()
        client = RootClient([plain, expired], timeout_s=60.0, dial=dial_with(tls))
        async with asyncio.timeout(30.0):  # long before the client's own deadline
            with pytest.raises(NotTrusted):
                await client.status()
            with pytest.raises(NotTrusted):
                await client.append([StoreJoined(Store(1, "127.0.0.1:1"))])
        await client.close()

        coordinators = Coordinators([plain, expired], tls)
        with pytest.raises(NotTrusted):
            await coordinators.route(b"k", 20.0)
        await coordinators.close()


class TakesAndDies(root_pb2_grpc.RootServicer):
    """A meta-root that receives an append and says nothing about it."""

    def __init__(self) -> None:
        self.took = asyncio.Event()

    async def Append(self, request: root_pb2.RootAppendRequest, context: Any) -> root_pb2.RootAppendResponse:
        self.took.set()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "killed")
        raise AssertionError


async def test_a_write_that_may_have_happened_is_indeterminate_even_if_nobody_is_trusted_afterwards(
    identities: Path, tmp_path: Path
) -> None:
    """Nobody is, at the end; but `NotTrusted` would promise that nothing was done."""
    tls = Tls(identities / "ca/client")
    servicer = TakesAndDies()
    server = grpc.aio.server(options=server_options(MESSAGE_BYTES_MAX))
    root_pb2_grpc.add_RootServicer_to_server(servicer, server)
    address = bind(server, "127.0.0.1:0", Tls(identities / "ca/node"))
    await server.start()
    async with root_server(tmp_path / "plain", "127.0.0.1:0", None) as plain:
        client = RootClient([address, plain], timeout_s=4.0, dial=dial_with(tls))
        append = asyncio.create_task(client.append([StoreJoined(Store(1, "127.0.0.1:1"))]))
        await servicer.took.wait()
        await server.stop(0)
        async with root_server(tmp_path / "stranger", address, Tls(identities / "ca/old")):
            with pytest.raises(Indeterminate):
                await append
            with pytest.raises(NotTrusted):  # one that surely was not sent
                await client.append([StoreJoined(Store(2, "127.0.0.1:2"))])
        await client.close()


# -- the directory -----------------------------------------------------------------------------------------------------
def test_a_directory_that_cannot_be_used_says_why(identities: Path, tmp_path: Path) -> None:
    assert load_tls(None) is None
    with pytest.raises(UsageError, match=r"no ca\.crt"):
        Tls(tmp_path)
    with pytest.raises(UsageError, match=r"no tls\.crt") as a_ca:
        Tls(identities / "ca")
    assert "nokv cert issue" in a_ca.value.hint
    mine = tmp_path / "mine"
    shutil.copytree(identities / "ca/node", mine)
    (mine / "tls.key").chmod(0o640)
    with pytest.raises(UsageError, match="read by others") as open_key:
        Tls(mine)
    assert "chmod 600" in open_key.value.hint
    shutil.copy(identities / "ca/client/tls.key", mine / "tls.key")
    with pytest.raises(UsageError, match="do not fit together"):
        Tls(mine)
    (mine / "ca.crt").write_text("nonsense")
    with pytest.raises(UsageError, match="not a certificate"):
        Tls(mine)


def test_files_are_private_and_nothing_is_overwritten(tmp_path: Path) -> None:  # S8
    ca = tmp_path / "ca"
    init_ca(ca, now=NOW)
    found = issue(ca, "store-1", ["10.0.0.7", "store-1.example", "::1"], now=NOW)
    assert found.hosts == ["10.0.0.7", "store-1.example", "::1"] and len(found.fingerprint_sha256) == 64
    for path in ca.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert sorted(path.name for path in (ca / "store-1").iterdir()) == ["ca.crt", "tls.crt", "tls.key"]
    with pytest.raises(PreconditionFailed, match="already holds a CA"):
        init_ca(ca, now=NOW)
    with pytest.raises(PreconditionFailed, match="already exists"):
        issue(ca, "store-1", now=NOW)
    with pytest.raises(NotFound, match=r"no ca\.crt"):
        issue(tmp_path / "nothing", "store-1", now=NOW)


@pytest.mark.parametrize(
    ("name", "hosts", "days"),
    [("../x", [], 1), ("", [], 1), ("ca.key", [], 1), ("x", ["a b"], 1), ("x", ["h:1"], 1), ("x", [], 0)],
)
def test_bad_requests_for_certificates(tmp_path: Path, name: str, hosts: list[str], days: int) -> None:
    init_ca(tmp_path / "ca", now=NOW)
    with pytest.raises(UsageError):
        issue(tmp_path / "ca", name, hosts, days=days, now=NOW)
    assert sorted(path.name for path in (tmp_path / "ca").iterdir()) == ["ca.crt", "ca.key"]


def test_an_expired_ca_issues_nothing_and_no_certificate_outlives_its_ca(tmp_path: Path) -> None:
    init_ca(tmp_path / "old", days=10, now=NOW - datetime.timedelta(days=20))
    with pytest.raises(PreconditionFailed, match="expired"):
        issue(tmp_path / "old", "x", now=NOW)
    short = init_ca(tmp_path / "short", days=10, now=NOW)
    assert issue(tmp_path / "short", "x", days=365, now=NOW).not_after == short.not_after


# -- limits (S3, S4) ---------------------------------------------------------------------------------------------------
async def test_two_servers_do_not_share_a_port() -> None:  # S3
    async with serving(None) as address:
        server = grpc.aio.server(options=server_options(MESSAGE_BYTES_MAX))
        with pytest.raises(Unavailable, match="cannot listen"):
            bind(server, address)


async def test_a_message_over_the_limit_is_refused() -> None:  # S4
    async with serving(None) as address:
        assert await ask(address, None, b"x" * (MESSAGE_BYTES_MAX - 10)) == ""
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await ask(address, None, b"x" * (MESSAGE_BYTES_MAX + 1))
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_connections_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:  # S4
    monkeypatch.setattr("nokv.rpc.transport.CONNECTIONS_MAX", 2)
    async with serving(None) as address:
        own = (("grpc.use_local_subchannel_pool", 1),)
        async with open_channel(address, own) as one, open_channel(address, own) as two:
            for channel in (one, two):
                await channel.unary_unary("/test/WhoAmI")(b"", timeout=10.0)
            async with open_channel(address, own) as three:
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await three.unary_unary("/test/WhoAmI")(b"", timeout=1.0)
            assert failed.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            assert await one.unary_unary("/test/WhoAmI")(b"", timeout=10.0) == b""


async def test_a_connection_has_a_limited_number_of_streams() -> None:  # S4
    arrived, done = 0, asyncio.Event()
    full = asyncio.Event()

    class Hold(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            async def wait(_request: bytes, _context: Any) -> bytes:
                nonlocal arrived
                arrived += 1
                if arrived == STREAMS_MAX:
                    full.set()
                await done.wait()
                return b""

            return grpc.unary_unary_rpc_method_handler(wait)

    server = grpc.aio.server(options=server_options(MESSAGE_BYTES_MAX))
    server.add_generic_rpc_handlers((Hold(),))
    address = bind(server, "127.0.0.1:0")
    await server.start()
    async with open_channel(address) as channel:
        await channel.channel_ready()  # it knows the server's limit then
        method = channel.unary_unary("/test/Hold")
        calls = [asyncio.ensure_future(method(b"", timeout=30.0)) for _ in range(STREAMS_MAX + 50)]
        await asyncio.wait_for(full.wait(), 30.0)
        async with open_channel(address, (("grpc.use_local_subchannel_pool", 1),)) as other:  # its own connection

            async def free() -> None:
                await other.unary_unary("/test/Hold")(b"", timeout=30.0)

            another = asyncio.ensure_future(free())
            while arrived == STREAMS_MAX:
                await asyncio.sleep(0)  # the second connection's call gets in; the 50 of the first one never do
            assert arrived == STREAMS_MAX + 1
            done.set()
            await another
        # those above the limit waited, or were turned away by the server
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(answer == b"" for answer in answers) >= STREAMS_MAX
    await server.stop(0)
