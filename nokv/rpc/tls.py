"""One process's identity: the directory of `--tls-dir`, and why a connection with it fails.

    DIR/ca.crt    PEM, who is trusted: the other side's certificate must come from here
    DIR/tls.crt   PEM, this process's certificate (and what leads from it to the CA, if anything)
    DIR/tls.key   PEM, its private key; nobody else may read the file (0600)

Both sides of a connection show a certificate. The files are read again when they change, so that a renewed certificate
needs no restart; a half-written pair is passed over until it fits. Any thread. No gRPC in here.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

from nokv.errors import NotTrusted, UsageError

__all__ = ["CA_FILE", "CERTIFICATE_FILE", "KEY_FILE", "Tls", "TlsMaterial", "load_tls", "refusal", "split_address"]

CA_FILE = "ca.crt"
CERTIFICATE_FILE = "tls.crt"
KEY_FILE = "tls.key"
PEM_BYTES_MAX = 1 << 20
PROBE_TIMEOUT_S = 1.0


def split_address(address: str, what: str = "address") -> tuple[str, int]:
    """host:port, also [::1]:port. UsageError names `what`."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UsageError(f"{what} {address!r} is not host:port", hint="for example 127.0.0.1:20160")
    return host.strip("[]"), int(port)


@dataclass(slots=True, frozen=True)
class TlsMaterial:
    """PEM bytes that fit together. `stamp` changes when the files do."""

    ca: bytes
    certificate: bytes
    key: bytes
    stamp: tuple[tuple[int, int, int], ...]


class Tls:
    """The identity in `directory`. UsageError, which names the file, if it cannot be used."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._lock = threading.Lock()
        self._material = self._read()

    def __repr__(self) -> str:
        return f"Tls({str(self.directory)!r})"

    def material(self) -> TlsMaterial:
        """What the files hold now; what they held before while they do not fit together."""
        with self._lock:
            try:
                if self._stamp() != self._material.stamp:
                    self._material = self._read()
            except (UsageError, OSError):
                return self._material  # being replaced right now, or damaged: what works goes on working
            return self._material

    def _paths(self) -> tuple[Path, Path, Path]:
        return self.directory / CA_FILE, self.directory / CERTIFICATE_FILE, self.directory / KEY_FILE

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        found = [path.stat() for path in self._paths()]
        return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in found)

    def _read(self) -> TlsMaterial:
        ca, certificate, key = self._paths()
        for path in (ca, certificate, key):
            if not path.is_file():
                raise UsageError(f"--tls-dir {self.directory} has no {path.name}", hint=self._missing_hint())
            if path.stat().st_size > PEM_BYTES_MAX:
                raise UsageError(f"{path} is too large for a PEM file")
        if key.stat().st_mode & 0o077:
            raise UsageError(f"{key} can be read by others", hint=f"chmod 600 {key}")
        for _ in range(3):  # a file may be replaced while we read
            stamp = self._stamp()
            material = TlsMaterial(ca.read_bytes(), certificate.read_bytes(), key.read_bytes(), stamp)
            client_context(self)
            if self._stamp() == stamp:
                return material
        raise UsageError(f"{self.directory} keeps changing")

    def _missing_hint(self) -> str:
        if (self.directory / "ca.key").exists():
            return f"it is a CA: nokv cert issue {self.directory} NAME --host HOST makes {self.directory}/NAME"
        return "nokv cert init CA, then nokv cert issue CA NAME --host HOST makes CA/NAME"


def client_context(tls: Tls) -> ssl.SSLContext:
    """A context of the standard library with this identity. UsageError if the files do not fit together."""
    ca, certificate, key = tls._paths()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise UsageError(f"{ca} is not a certificate: {_reason(error)}") from None
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        raise UsageError(f"{certificate} and {key.name} do not fit together: {_reason(error)}") from None
    return context


def _no_password() -> bytes:
    raise UsageError("the private key is encrypted", hint="a --tls-dir needs a key without a password")


def load_tls(directory: str | os.PathLike[str] | None) -> Tls | None:
    """None for None: without TLS."""
    return None if directory is None else Tls(directory)


def refusal(address: str, tls: Tls | None, details: str, *, timeout_s: float = PROBE_TIMEOUT_S) -> NotTrusted | None:
    """After a failed call: the error if certificates (or TLS against plain text) are the reason, else None.

    `details`: what gRPC said. That is "Socket closed" for most of these, so one handshake is made to find out, if a
    connection was there to be had. Blocks up to `timeout_s`.
    """
    if "failed to connect" not in details or "onnection refused" in details:
        return None
    host, port = split_address(address)
    try:
        connection = socket.create_connection((host, port), timeout_s)
    except OSError:
        return None  # nobody there: that is the reason
    with connection:
        why, hint = _ask_plain(connection) if tls is None else _ask(connection, host, tls)
    return NotTrusted(f"{address}: {why}", hint=hint) if why else None


def _ask_plain(connection: socket.socket) -> tuple[str, str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only to learn whether it speaks TLS; nothing is sent
    context.set_alpn_protocols(["h2"])
    try:
        context.wrap_socket(connection, do_handshake_on_connect=True).close()
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "RECORD_LAYER_FAILURE", None):
            return "", ""
    except OSError:
        return "", ""
    return "it speaks TLS and this side does not", "--tls-dir DIR, with a certificate of the cluster's CA"


def _ask(connection: socket.socket, host: str, tls: Tls) -> tuple[str, str]:
    mine = f"look at {tls.directory / CERTIFICATE_FILE}: expired, or from another CA than the server's?"
    try:
        context = client_context(tls)
    except (UsageError, OSError):
        return "", ""  # our own files are being replaced: nothing to say about the other side
    try:
        with context.wrap_socket(connection, server_hostname=host) as secured:
            return ("", "") if secured.recv(1) else ("it does not accept our certificate", mine)
    except ssl.SSLCertVerificationError as error:
        text = error.verify_message
        if "mismatch" in text or "doesn't match" in text or "not valid for" in text:
            hint = f"issue the server's certificate with --host {host}, or use the name that it has"
        else:
            hint = f"is the server's certificate from {tls.directory / CA_FILE}, and still valid?"
        return f"its certificate is refused: {text}", hint
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            return "it speaks plain text, and we insist on TLS", "start it with --tls-dir, or leave --tls-dir out here"
        return f"it does not accept our certificate: {_reason(error)}", mine
    except TimeoutError:
        return "", ""
    except OSError:
        return "it closed the connection in the handshake: it does not accept our certificate", mine


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
