"""A certificate authority in a directory, for a cluster that has none: `nokv cert init` and `nokv cert issue`.

    CA/ca.crt, CA/ca.key        the authority; ca.key stays where certificates are issued
    CA/NAME/ca.crt, tls.crt, tls.key     one identity, ready to be copied to its machine as `--tls-dir`

ECDSA P-256. The common name is NAME. An identity with hosts may serve and call (node-to-node), one without may only
call. Directories are 0700, files 0600. The X.509 work is done by the `cryptography` package.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nokv.errors import NotFound, PreconditionFailed, UsageError
from nokv.rpc.tls import CA_FILE, CERTIFICATE_FILE, KEY_FILE

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["CA_DAYS", "CA_KEY_FILE", "IDENTITY_DAYS", "Issued", "init_ca", "issue"]

CA_KEY_FILE = "ca.key"
CA_DAYS = 3650
IDENTITY_DAYS = 365
SKEW = datetime.timedelta(minutes=5)
"""Valid since a little while ago: the clocks of a cluster's machines differ."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HOST = re.compile(r"[A-Za-z0-9*]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


@dataclass(slots=True)
class Issued:
    name: str
    directory: str
    hosts: list[str]
    not_after: str
    fingerprint_sha256: str


def init_ca(directory: str | Path, *, name: str = "NoKV CA", days: int = CA_DAYS, now: datetime.datetime) -> Issued:
    """Make an authority in `directory`. PreconditionFailed if there is one: its certificates would all be void."""
    _require_cryptography()
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    path = Path(directory)
    if (path / CA_FILE).exists() or (path / CA_KEY_FILE).exists():
        raise PreconditionFailed(f"{path} already holds a CA", hint=f"nokv cert issue {path} NAME --host HOST")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = _sign(
        x509.CertificateBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(x509, sign_certificates=True), critical=True),
        issuer=subject,
        issuer_key=key,
        public_key=key.public_key(),
        not_before=now - SKEW,
        not_after=now + datetime.timedelta(days=_days(days)),
    )
    _private_directory(path)
    _write(path / CA_KEY_FILE, _key_pem(key))
    _write(path / CA_FILE, _pem(certificate))
    return _describe(name, path, [], certificate)


def issue(
    ca: str | Path,
    name: str,
    hosts: Sequence[str] = (),
    *,
    days: int = IDENTITY_DAYS,
    renew: bool = False,
    now: datetime.datetime,
) -> Issued:
    """Make CA/NAME. With `renew`, replace the certificate and key that are there (servers notice by themselves)."""
    _require_cryptography()
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    path = Path(ca)
    if not _NAME.fullmatch(name) or name in (CA_FILE, CA_KEY_FILE):
        raise UsageError(f"{name!r} is no name for a certificate", hint="letters, digits, dot, dash: store-1")
    ca_certificate, ca_key = _load_ca(path)
    if now >= ca_certificate.not_valid_after_utc:
        raise PreconditionFailed(f"the CA in {path} has expired", hint="make a new one: nokv cert init")
    target = path / name
    if (target / CERTIFICATE_FILE).exists() and not renew:
        raise PreconditionFailed(f"{target} already exists", hint="--renew replaces its certificate and key")
    key = ec.generate_private_key(ec.SECP256R1())
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(x509, sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    )
    if hosts:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(x509, host) for host in hosts]), critical=False
        )
    certificate = _sign(
        builder,
        issuer=ca_certificate.subject,
        issuer_key=ca_key,
        public_key=key.public_key(),
        not_before=now - SKEW,
        not_after=min(now + datetime.timedelta(days=_days(days)), ca_certificate.not_valid_after_utc),
    )
    _private_directory(target)
    _write(target / CA_FILE, (path / CA_FILE).read_bytes())
    _write(target / KEY_FILE, _key_pem(key))
    _write(target / CERTIFICATE_FILE, _pem(certificate))
    return _describe(name, target, list(hosts), certificate)


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError("certificates need the package cryptography", hint="pip install 'nokv[tls]'") from None


def _days(days: int) -> int:
    if not 1 <= days <= 36_500:
        raise UsageError(f"a certificate is valid for 1 to 36500 days, not {days}")
    return days


def _load_ca(path: Path) -> tuple[x509.Certificate, Any]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    for file in (path / CA_FILE, path / CA_KEY_FILE):
        if not file.exists():
            raise NotFound(f"{path} has no {file.name}", hint=f"nokv cert init {path}")
    try:
        certificate = x509.load_pem_x509_certificate((path / CA_FILE).read_bytes())
        key = load_pem_private_key((path / CA_KEY_FILE).read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path}: the CA cannot be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(f"{path / CA_KEY_FILE} is not an elliptic-curve key")
    return certificate, key


def _general_name(x509_module: Any, host: str) -> Any:
    try:
        return x509_module.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        if not _HOST.fullmatch(host):
            raise UsageError(f"--host {host!r} is neither a name nor an address", hint="without a port") from None
        return x509_module.DNSName(host)


def _key_usage(x509_module: Any, *, sign_certificates: bool) -> Any:
    return x509_module.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(
    builder: x509.CertificateBuilder,
    *,
    issuer: x509.Name,
    issuer_key: Any,
    public_key: Any,
    not_before: datetime.datetime,
    not_after: datetime.datetime,
) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    return (
        builder.issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _describe(name: str, directory: Path, hosts: list[str], certificate: x509.Certificate) -> Issued:
    from cryptography.hazmat.primitives import hashes

    fingerprint = certificate.fingerprint(hashes.SHA256()).hex()
    return Issued(name, str(directory), hosts, certificate.not_valid_after_utc.isoformat(), fingerprint)


def _private_directory(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)


def _write(path: Path, data: bytes) -> None:
    """0600 from its first byte on, and whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
