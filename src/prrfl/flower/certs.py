"""Certificates and keys for a pilot: a CA, the server's certificate, each site's node key and signing key."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from prrfl.data.tables import is_plain_name
from prrfl.errors import ConfigError, ParticipationError
from prrfl.storage.atomic import replacing
from prrfl.storage.reading import read_bytes
from prrfl.types import ClientId

LONGEST_DAYS = 36_500

DAYS_OF_CA = 3650
"""How long a CA holds at least: a new certificate of the server then needs nothing at the sites."""

SOON = timedelta(days=30)
"""Before a certificate ends, in which a start of server or site warns of it."""

_HOST = re.compile(
    r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)

PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey


def make_certs(folder: Path, sites: Sequence[ClientId], hosts: Sequence[str], days: int = 365) -> None:
    """Write ``ca/``, to keep offline, ``server/`` for the server, and ``sites/<name>/`` for each site.

    Args:
        folder: must be new or empty.
        sites: their names.
        hosts: names and addresses under which sites reach the server. It speaks to itself as localhost and
            127.0.0.1, which are added.
        days: how long the server's certificate holds; the CA's holds :data:`DAYS_OF_CA` at least.

    Raises:
        ConfigError: if the folder holds anything, there is no site or host, or a host cannot be one.
        ParticipationError: if a site's name cannot be one.
    """
    if not sites:
        raise ConfigError("name at least one site (--sites)")
    check_names(sites)
    _check(folder, hosts, days)
    ca_key = ec.generate_private_key(ec.SECP384R1())
    authority = Authority(_self_signed(ca_key, max(days, DAYS_OF_CA)), ca_key)
    ca = authority.certificate.public_bytes(Encoding.PEM)
    _write(folder / "ca" / "ca.key", _private(ca_key, PrivateFormat.PKCS8), secret=True)
    _write(folder / "ca" / "ca.crt", ca)
    server = _write_server(folder, authority, hosts, days)
    signing = {name: Ed25519PrivateKey.generate() for name in sorted(sites)}
    roster = "".join(f"{name} {_public(key).decode()}\n" for name, key in signing.items()).encode()
    for name, key in signing.items():
        node = ec.generate_private_key(ec.SECP384R1())
        own = folder / "sites" / name
        _write(own / "node.key", _private(node, PrivateFormat.OpenSSH), secret=True)
        _write(own / "sign.key", _private(key, PrivateFormat.OpenSSH), secret=True)
        _write(own / "ca.crt", ca)
        _write(own / "roster.txt", roster)
        _write(server / "nodes" / f"{name}.pub", _public(node))


def renew_certs(folder: Path, ca: Path, hosts: Sequence[str], days: int = 365) -> None:
    """Write ``server/`` with a new key and certificate of the server, by a CA that the sites believe already.

    Args:
        folder: must be new or empty.
        ca: the folder ``ca`` that :func:`make_certs` wrote.
        hosts: as there.
        days: how long the certificate holds.

    Raises:
        ConfigError: if the folder holds anything, a host cannot be one, or the CA cannot be read or ends
            before.
    """
    _check(folder, hosts, days)
    authority = _read_authority(ca)
    end = authority.certificate.not_valid_after_utc
    if end < datetime.now(UTC) + timedelta(days=days):
        raise ConfigError(
            f"the CA of {ca} ends on {end:%Y-%m-%d}, before the {days} days are over; give fewer (--days), "
            "or make a new CA, whose ca.crt then goes to every site"
        )
    _write_server(folder, authority, hosts, days)


def check_valid(path: Path, now: datetime) -> str | None:
    """Return a warning if a certificate ends soon.

    Args:
        path: of a file in PEM, whose first certificate is looked at.
        now: the time, with its zone.

    Raises:
        ConfigError: if it cannot be read, or does not hold now.
    """
    certificate = _read_certificate(path)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now < end:
        raise ConfigError(
            f"{path} holds from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, and it is "
            f"{now.astimezone(UTC):%Y-%m-%d %H:%M}; set the clock, or have it renewed (prrfl certs --ca)"
        )
    if end - now > SOON:
        return None
    return f"{path} ends on {end:%Y-%m-%d}, in {(end - now).days} days; have it renewed (prrfl certs --ca)"


def check_readable(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        ConfigError: if this user cannot read it.
    """
    try:
        return read_bytes(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} is not there; `prrfl certs` makes one for a pilot") from None
    except OSError as cause:
        raise ConfigError(
            f"{path} cannot be read: {cause.strerror}; expected a file that this user may read (chown, chmod)"
        ) from None


def check_private_key(path: Path) -> None:
    """Raise unless a file holds a private key as ``ssh-keygen`` writes it, without a passphrase.

    Raises:
        ConfigError: naming the file.
    """
    try:
        load_ssh_private_key(check_readable(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(
            f"{path} is no private key in OpenSSH's format without passphrase; make it by ssh-keygen -N ''"
        ) from None


def check_names(sites: Sequence[ClientId]) -> None:
    """Refuse names of sites that cannot name a folder, or not stand in a roster, whose lines begin with them.

    Raises:
        ParticipationError: naming the first.
    """
    for name in sites:
        if not is_plain_name(name) or any(c.isspace() for c in name) or name.startswith("#"):
            raise ParticipationError(f"a site cannot be named '{name}'; use letters, digits, - and _")


@dataclass(frozen=True)
class Authority:
    """Who vouches for the server."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def _check(folder: Path, hosts: Sequence[str], days: int) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"folder {folder} is not empty; keys are never overwritten, choose another")
    if not hosts:
        raise ConfigError("name at least one host of the server (--hosts)")
    for host in hosts:
        _alternative(host)
    if not 1 <= days <= LONGEST_DAYS:
        raise ConfigError(f"days is {days}; expected 1 to {LONGEST_DAYS}")


def _write_server(folder: Path, authority: Authority, hosts: Sequence[str], days: int) -> Path:
    key = ec.generate_private_key(ec.SECP384R1())
    names = list(dict.fromkeys([*hosts, "localhost", "127.0.0.1"]))
    certificate = _certificate(key, names, authority, days)
    server = folder / "server"
    _write(server / "server.key", _private(key, PrivateFormat.PKCS8), secret=True)
    _write(server / "server.crt", certificate.public_bytes(Encoding.PEM))
    _write(server / "ca.crt", authority.certificate.public_bytes(Encoding.PEM))
    return server


def _read_authority(folder: Path) -> Authority:
    certificate, path = _read_certificate(folder / "ca.crt"), folder / "ca.key"
    try:
        key = load_pem_private_key(check_readable(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path} holds no private key in PEM; expected what `prrfl certs` wrote") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"{path} is not the key of {folder / 'ca.crt'}; expected the folder `ca` as it was")
    return Authority(certificate, key)


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(check_readable(path))
    except ValueError:
        raise ConfigError(f"{path} holds no certificate in PEM") from None


def _self_signed(key: ec.EllipticCurvePrivateKey, days: int) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "prrfl pilot CA")])
    return (
        _begun(name, name, key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )


def _certificate(
    key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
    authority: Authority,
    days: int,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return (
        _begun(name, authority.certificate.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority.key, SHA256())
    )


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise ConfigError(
            f"host '{host}' cannot be one; expected a name or address alone, without https://, port or path, "
            "other letters in punycode (xn--)"
        )
    return x509.DNSName(host)


def _private(key: PrivateKey, form: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def _public(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def _write(path: Path, content: bytes, secret: bool = False) -> None:
    with replacing(path, mode=0o600 if secret else 0o644) as temporary:
        temporary.write_bytes(content)
