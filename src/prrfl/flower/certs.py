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
from prrfl.storage.atomic import is_free, replacing
from prrfl.storage.reading import read_bytes
from prrfl.types import ClientId

LONGEST_DAYS = 36_500

DAYS_OF_CA = 3650
"""Least lifetime of a CA. It outlives the server's certificates, which are renewed without the sites."""

SOON = timedelta(days=30)
"""Time before a certificate expires in which server and site warn of it when they start."""

_HOST = re.compile(
    r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)

PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey


def make_certs(folder: Path, sites: Sequence[ClientId], hosts: Sequence[str], days: int = 365) -> None:
    """Write the folders ``ca``, to keep offline, ``server``, and ``sites/<name>`` for each site.

    Args:
        folder: a new or empty folder.
        sites: the sites' names.
        hosts: names and addresses under which sites reach the server. The server reaches itself as localhost
            and 127.0.0.1, which are added.
        days: lifetime of the server's certificate; the CA's is at least :data:`DAYS_OF_CA`.

    Raises:
        ConfigError: if the folder is not empty, no site or host is given, or a host or lifetime is invalid.
        ParticipationError: if a site's name is invalid.
    """
    if not sites:
        raise ConfigError("no site given; name at least one with --sites")
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
    """Write the folder ``server`` with a new key, and a certificate by a CA that the sites already trust.

    Args:
        folder: a new or empty folder.
        ca: the folder ``ca`` from :func:`make_certs`.
        hosts: as for :func:`make_certs`.
        days: lifetime of the certificate.

    Raises:
        ConfigError: if the folder is not empty, a host or lifetime is invalid, or the CA cannot be read or
            expires earlier.
    """
    _check(folder, hosts, days)
    authority = _read_authority(ca)
    end = authority.certificate.not_valid_after_utc
    if end < datetime.now(UTC) + timedelta(days=days):
        raise ConfigError(
            f"the CA in {ca} expires on {end:%Y-%m-%d}, before the {days} days are over; choose fewer "
            "--days, or make a new CA and give its ca.crt to every site"
        )
    _write_server(folder, authority, hosts, days)


def check_valid(path: Path, now: datetime) -> str | None:
    """Return a warning if a certificate expires soon.

    Args:
        path: a file in PEM; its first certificate is checked.
        now: the time, with its time zone.

    Raises:
        ConfigError: if it cannot be read, or is not valid now.
    """
    certificate = _read_certificate(path)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now < end:
        raise ConfigError(
            f"{path} is valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, but now it is "
            f"{now.astimezone(UTC):%Y-%m-%d %H:%M}; correct the clock, or renew the certificate (prrfl certs "
            "--ca)"
        )
    if end - now > SOON:
        return None
    return f"{path} expires on {end:%Y-%m-%d}, in {(end - now).days} days; renew it (prrfl certs --ca)"


def check_readable(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        ConfigError: if this user cannot read it.
    """
    try:
        return read_bytes(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; make one for a pilot with prrfl certs") from None
    except OSError as cause:
        raise ConfigError(
            f"{path} cannot be read: {cause.strerror}; let this user read it (chown, chmod)"
        ) from None


def open_keys(paths: Sequence[Path]) -> list[str]:
    """Return a warning for each file of a private key that every user of this machine can read.

    Its group may read it: so a service gets a key that root owns.
    """
    return [
        f"every user of this machine can read the private key {path}; run chmod o= {path}"
        for path in paths
        if path.stat().st_mode & 0o007
    ]


def check_private_key(path: Path) -> None:
    """Check that a file holds a private key as ``ssh-keygen`` writes it, without a passphrase.

    Raises:
        ConfigError: if it does not.
    """
    try:
        load_ssh_private_key(check_readable(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(
            f"{path} is not a private key in OpenSSH's format without a passphrase; make one with "
            "ssh-keygen -N ''"
        ) from None


def check_names(sites: Sequence[ClientId]) -> None:
    """Check that the names of sites can be used for folders and at the start of a roster's lines.

    Raises:
        ParticipationError: naming the first that cannot.
    """
    for name in sites:
        if not is_plain_name(name) or any(c.isspace() for c in name) or name.startswith("#"):
            raise ParticipationError(f"invalid site name '{name}'; use letters, digits, - and _")


@dataclass(frozen=True)
class Authority:
    """The certificate authority that signs the server's certificate."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def _check(folder: Path, hosts: Sequence[str], days: int) -> None:
    if not is_free(folder):
        raise ConfigError(f"{folder} exists already, and keys are never overwritten; choose another folder")
    if not hosts:
        raise ConfigError("no host given; name at least one of the server with --hosts")
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
        raise ConfigError(
            f"{path} is not a private key in PEM; expected the file that prrfl certs wrote"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(
            f"{path} is not the key of {folder / 'ca.crt'}; expected the folder ca from prrfl certs"
        )
    return Authority(certificate, key)


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(check_readable(path))
    except ValueError:
        raise ConfigError(f"{path} is not a certificate in PEM") from None


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
        .not_valid_before(now - timedelta(minutes=5))  # for clocks that differ
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
            f"invalid host '{host}'; expected only a name or address, without https://, port or path, and "
            "with non-English letters in punycode (xn--)"
        )
    return x509.DNSName(host)


def _private(key: PrivateKey, form: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def _public(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def _write(path: Path, content: bytes, secret: bool = False) -> None:
    with replacing(path, mode=0o600 if secret else 0o644) as temporary:
        temporary.write_bytes(content)
