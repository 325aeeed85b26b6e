"""Certificates and keys for a pilot: a CA, the server's certificate, each site's node key and signing key."""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from prrfl.data.tables import is_plain_name
from prrfl.engine.store import replacing
from prrfl.errors import ConfigError, ParticipationError
from prrfl.types import ClientId

LONGEST_DAYS = 36_500

PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey


def make_certs(folder: Path, sites: Sequence[ClientId], hosts: Sequence[str], days: int = 365) -> None:
    """Write ``server/``, which stays with the server, and ``sites/<name>/``, which goes to each site.

    Args:
        folder: must be new or empty.
        sites: their names.
        hosts: names and addresses under which sites reach the server. It speaks to itself as localhost and
            127.0.0.1, which are added.
        days: how long the certificates hold.

    Raises:
        ConfigError: if the folder holds anything, there is no site or host, or a host cannot be one.
        ParticipationError: if a site's name cannot be one.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"folder {folder} is not empty; keys are never overwritten, choose another")
    if not sites or not hosts:
        raise ConfigError("name at least one site (--sites) and one host of the server (--hosts)")
    if not 1 <= days <= LONGEST_DAYS:
        raise ConfigError(f"days is {days}; expected 1 to {LONGEST_DAYS}")
    check_names(sites)
    authority_key = ec.generate_private_key(ec.SECP384R1())
    authority = _authority(authority_key, days)
    server_key = ec.generate_private_key(ec.SECP384R1())
    names = list(dict.fromkeys([*hosts, "localhost", "127.0.0.1"]))
    certificate = _certificate(server_key, names, authority, authority_key, days)
    server = folder / "server"
    _write(server / "ca.key", _private(authority_key, PrivateFormat.PKCS8), secret=True)
    _write(server / "server.key", _private(server_key, PrivateFormat.PKCS8), secret=True)
    _write(server / "server.crt", certificate.public_bytes(Encoding.PEM))
    ca = authority.public_bytes(Encoding.PEM)
    _write(server / "ca.crt", ca)
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


def check_names(sites: Sequence[ClientId]) -> None:
    """Refuse names of sites that cannot name a folder, or not stand in a roster, whose lines begin with them.

    Raises:
        ParticipationError: naming the first.
    """
    for name in sites:
        if not is_plain_name(name) or any(c.isspace() for c in name) or name.startswith("#"):
            raise ParticipationError(f"a site cannot be named '{name}'; use letters, digits, - and _")


def _authority(key: ec.EllipticCurvePrivateKey, days: int) -> x509.Certificate:
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
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    days: int,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _begun(name, authority.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority_key, SHA256())
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
    try:
        return x509.DNSName(host)
    except ValueError:
        raise ConfigError(f"host '{host}' cannot be one; write other letters in punycode (xn--)") from None


def _private(key: PrivateKey, form: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def _public(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def _write(path: Path, content: bytes, secret: bool = False) -> None:
    with replacing(path, mode=0o600 if secret else 0o644) as temporary:
        temporary.write_bytes(content)
