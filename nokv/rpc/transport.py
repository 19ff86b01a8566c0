"""Channels, servers and ports of gRPC: the one place where they are made, with TLS or without, and with limits.

Without `tls` everything is plain text: for loopback, or a network that the operator called trusted. With it both sides
must show a certificate of the CA. A server reads renewed certificates at the next handshake; a channel has those of the
moment it was opened, and `Channels` opens another one when it fails and they were renewed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from nokv.errors import NotTrusted, Unavailable
from nokv.rpc.tls import Tls, TlsMaterial, refusal, split_address

__all__ = [
    "STREAMS_MAX",
    "Channels",
    "Dialer",
    "bind",
    "is_oversize",
    "open_blocking_channel",
    "open_channel",
    "peer_name",
    "server_options",
]

STREAMS_MAX = 1024
"""Of one connection; a client that wants more waits."""
CONNECTIONS_MAX = 4096
METADATA_BYTES_MAX = 16 << 10

CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (("grpc.enable_http_proxy", 0),)
"""A proxy of the environment is for the web."""

Options = Sequence[tuple[str, Any]]


def server_options(message_bytes_max: int) -> list[tuple[str, Any]]:
    """Limits that every server has. A longer message is RESOURCE_EXHAUSTED before it is read."""
    return [
        ("grpc.so_reuseport", 0),  # otherwise two processes could listen on one port unnoticed
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.max_send_message_length", message_bytes_max),
        ("grpc.max_concurrent_streams", STREAMS_MAX),
        ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ]


def bind(server: grpc.aio.Server, address: str, tls: Tls | None = None) -> str:
    """Listen; returns the address with the real port. Unavailable if somebody else does."""
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, _server_credentials(tls))
    except RuntimeError as error:
        raise Unavailable(f"cannot listen on {address}: {error}", hint="is another process using the port?") from error
    if port == 0:
        raise Unavailable(f"cannot listen on {address}", hint="is another process using the port?")
    return f"{address.rpartition(':')[0]}:{port}"


def open_channel(address: str, options: Options = (), tls: Tls | None = None) -> grpc.aio.Channel:
    """For asyncio. Lazy: nothing is dialled before the first call. UsageError if `address` is not host:port."""
    split_address(address)
    options = (*CHANNEL_OPTIONS, *options)
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, _channel_credentials(tls.material()), options=options)


class Dialer:
    """`open_channel` with its options and credentials settled: how a client's channels come in through a port."""

    def __init__(self, options: Options = (), tls: Tls | None = None) -> None:
        self._options = tuple(options)
        self._tls = tls

    @property
    def version(self) -> object:
        """Changes when the certificates do."""
        return None if self._tls is None else self._tls.material().stamp

    def __call__(self, address: str) -> grpc.aio.Channel:
        return open_channel(address, self._options, self._tls)

    async def refusal(self, address: str, error: grpc.aio.AioRpcError) -> NotTrusted | None:
        """The reason of a failed call, if it is one of certificates."""
        return await asyncio.to_thread(refusal, address, self._tls, str(error.details()))


class Channels:
    """A channel for each address, made on demand, and made anew after a failure if the certificates changed since.

    One event loop. `dial` may be a simulated one.
    """

    def __init__(self, dial: Callable[[str], grpc.aio.Channel]) -> None:
        self.dial = dial
        self._open: dict[str, tuple[grpc.aio.Channel, object]] = {}
        self._retired: list[grpc.aio.Channel] = []  # calls may still be under way on them

    def get(self, address: str) -> grpc.aio.Channel:
        known = self._open.get(address)
        if known is None:
            version = self.dial.version if isinstance(self.dial, Dialer) else None
            known = self._open[address] = (self.dial(address), version)
        return known[0]

    def failed(self, address: str) -> None:
        """No connection to `address`: the next `get` dials anew if that may help."""
        known = self._open.get(address)
        if known is not None and isinstance(self.dial, Dialer) and known[1] != self.dial.version:
            del self._open[address]
            self._retired.append(known[0])

    async def refusal(self, address: str, error: grpc.aio.AioRpcError) -> NotTrusted | None:
        """After a failed call: the reason, if it is one of certificates."""
        if error.code() is not grpc.StatusCode.UNAVAILABLE or not isinstance(self.dial, Dialer):
            return None  # a simulated network knows no certificates
        self.failed(address)
        return await self.dial.refusal(address, error)

    async def close(self) -> None:
        channels = [*self._retired, *(channel for channel, _ in self._open.values())]
        self._retired.clear()
        self._open.clear()
        for channel in channels:
            await channel.close(None)


def open_blocking_channel(address: str, options: Options = (), tls: Tls | None = None) -> grpc.Channel:
    """The same for callers that block."""
    split_address(address)
    options = (*CHANNEL_OPTIONS, *options)
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, _channel_credentials(tls.material()), options=options)


def is_oversize(details: str) -> bool:
    """RESOURCE_EXHAUSTED because a message is over a limit: unlike a full queue, that does not pass."""
    return "larger than max" in details


def peer_name(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Who calls: the common name of the client's certificate, "" without TLS."""
    names = context.auth_context().get("x509_common_name", ())
    return next((bytes(name).decode("utf-8", "replace") for name in names), "")


def _channel_credentials(material: TlsMaterial) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(material.ca, material.key, material.certificate)


def _server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """Credentials that look at the files at each handshake (three stats) and insist on a client's certificate."""

    def configuration() -> grpc.ServerCertificateConfiguration:
        found = tls.material()
        return grpc.ssl_server_certificate_configuration([(found.key, found.certificate)], found.ca)

    return grpc.dynamic_ssl_server_credentials(configuration(), configuration, require_client_authentication=True)
