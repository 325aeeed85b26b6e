"""Secure summation: the server learns the sum of the sites' shares, and no single share.

This is the protocol of Bonawitz et al. (CCS 2017, https://doi.org/10.1145/3133956.3133982) without recovery
of sites that drop out. Each pair of sites agrees on a mask; one of them adds it and the other subtracts it,
so that these masks cancel in the sum. Each site also adds a mask of its own. When all sites of the cohort
have sent their masked shares, the server asks each site for the seed of this mask, and a site reveals it for
only one cohort in a round. Numbers are in fixed point modulo 2^64, where a masked number is uniformly
distributed.

If a site drops out, its sum is void, and the server asks the other sites for a new one. A masked share that
arrives late is useless, because the seeds for the sum that it belongs to are never revealed. If a site drops
out after others have revealed their seeds, the round waits for it: that sum is the only one of the round.

Keys: for each experiment, a site makes a key of its own (X25519). In each round it signs this key, together
with the digest of the last mean that it received, with its key in the consortium's roster (Ed25519). The
secret of a pair goes through HKDF, together with the experiment, the round, and the names, keys and means of
the whole cohort; the result is the key of ChaCha20, whose stream is the mask. A site's own mask comes from
its private key in the same way, and from the digest of its share. So different cohorts have different masks,
and so have different shares.

Means: if the server sends one site the true mean and zeros to the others, it can tell what the others will
share, and so reads the share of the one in the next sum. So a site refuses a cohort whose sites were sent
different means of the same round. It cannot tell this of a site that received no mean of that round.

Range: a site refuses a share with a number (times its weight) of 2^30 / n or more, for n sites, so a sum is
less than 2^30. Each site's numbers are rounded by at most 2^-33, as long as they are at most 2^21: beyond,
float64 itself has fewer binary places. So the error of a sum of at most 2^21 is at most n * 2^-33, apart from
the rounding of the result to the tensors' own type.

Limits. The server is assumed to be honest but curious: it may look at everything, but follows the protocol.
If the cohorts of two rounds differ by one site, their sums tell about that site's share, the more so the
less the other shares changed. If all sites but one collude with the server, nothing protects that one.
Scores and losses are not masked. The code is tested, but no cryptographer has reviewed it.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from numpy.typing import NDArray
from torch import Tensor

from prrfl.errors import ConfigError, NonFiniteShareError, StateMismatchError
from prrfl.flower.messages import OrderRefusedError
from prrfl.storage.atomic import replacing
from prrfl.storage.reading import parse_json, read_bytes, read_text
from prrfl.storage.tensor_files import to_bytes
from prrfl.types import ClientId, Share, Tensors

SCALE = 2.0**32
"""Fixed-point steps in one unit."""

LARGEST = 2.0**30
"""Largest sum, and so the largest number of a share that is added without masks."""

FEWEST = 3
"""Least number of sites in a sum. With two, each would learn the other's share."""

SEED = 32
"""Bytes of the seed of a mask, which is the key of ChaCha20."""

SignedKey = Mapping[str, str]
"""A site's public key for one experiment: ``site``, ``key``, ``mean`` and ``signature``.

Key and signature are in hex. ``mean`` is the last mean that the site received: ``<round>:<SHA-256>``, or
empty before the first.
"""

_FIELDS = {"key": "[0-9a-fA-F]{64}", "mean": r"(\d{1,6}:[0-9a-f]{64})?", "signature": "[0-9a-fA-F]{128}"}


@dataclass(frozen=True, eq=False)
class Identity:
    """A site and its keys in one experiment.

    Attributes:
        site: the site's name.
        experiment: name of the run.
        roster: the public signing keys of all sites.
        signing: the site's private signing key.
        private: the site's private key for the experiment.
        mean: the last mean that the site received, as in :data:`SignedKey`.
    """

    site: ClientId
    experiment: str
    roster: Mapping[ClientId, Ed25519PublicKey]
    signing: Ed25519PrivateKey
    private: X25519PrivateKey
    mean: str = ""

    @classmethod
    def load(
        cls,
        site: ClientId,
        experiment: str,
        signing_key: Path,
        roster: Mapping[ClientId, Ed25519PublicKey],
        own: Path,
    ) -> Self:
        """Read the keys of a site; make its key for the experiment at the first call.

        Args:
            site: the site's name.
            experiment: name of the run.
            signing_key: file of the private signing key.
            roster: the public signing keys of all sites.
            own: file of the private key for the experiment.

        Raises:
            ConfigError: if a key cannot be read, or the roster holds another key for the site.
        """
        try:
            signing = load_ssh_private_key(read_bytes(signing_key), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm, OSError) as cause:
            raise ConfigError(f"signing key {signing_key} cannot be read: {cause}") from None
        if not isinstance(signing, Ed25519PrivateKey):
            raise ConfigError(
                f"signing key {signing_key} is not an Ed25519 key; make one with ssh-keygen -t ed25519"
            )
        if roster.get(site) != signing.public_key():
            raise ConfigError(
                f"the roster does not list the public key of {signing_key} for site {site}; add it to the "
                "roster at every site"
            )
        if not own.exists():
            with replacing(own, mode=0o600) as temporary:
                temporary.write_bytes(X25519PrivateKey.generate().private_bytes_raw())
        try:
            private = X25519PrivateKey.from_private_bytes(read_bytes(own))
        except (ValueError, OSError) as cause:
            raise ConfigError(f"the experiment's key {own} cannot be read: {cause}") from None
        return cls(site, experiment, roster, signing, private)

    def signed_key(self) -> SignedKey:
        """Return the site's public key for the experiment and the last mean that it received, signed."""
        key = self.private.public_key().public_bytes_raw().hex()
        signature = self.signing.sign(_statement(self.experiment, self.site, key, self.mean))
        return {"site": self.site, "key": key, "mean": self.mean, "signature": signature.hex()}

    def peers(self, cohort: Sequence[SignedKey]) -> dict[ClientId, X25519PublicKey]:
        """Return the keys of all sites of a cohort, after checking their signatures against the roster.

        Raises:
            OrderRefusedError: if the cohort is too small, lacks this site or lists a site or a key twice, a
                signature is invalid, or sites were sent different means.
        """
        keys: dict[ClientId, X25519PublicKey] = {}
        means: dict[str, str] = {}
        for one in cohort:
            try:
                name = check_key(one, one["site"])["site"]
                key, signature = bytes.fromhex(one["key"]), bytes.fromhex(one["signature"])
                if name in keys:
                    raise OrderRefusedError(f"site {self.site}: the cohort lists site {name} twice")
                self.roster[name].verify(signature, _statement(self.experiment, name, key.hex(), one["mean"]))
                if X25519PublicKey.from_public_bytes(key) in keys.values():
                    raise OrderRefusedError(f"site {self.site}: site {name} has the key of another site")
                keys[name] = X25519PublicKey.from_public_bytes(key)
                # A key of small order has the same secret with every other key; the library refuses it.
                self.private.exchange(keys[name])
            except (KeyError, TypeError, ValueError, InvalidSignature):
                whose = one.get("site", "?") if isinstance(one, Mapping) else "?"
                raise OrderRefusedError(
                    f"site {self.site}: the key of site {whose} is invalid, or not signed by its key in the "
                    "roster; the share is not sent"
                ) from None
            index, _, mean = one["mean"].partition(":")
            if means.setdefault(index, mean) != mean:
                raise OrderRefusedError(
                    f"site {self.site}: the server sent site {name} another mean of round {int(index) + 1} "
                    "than other sites; the share is not sent"
                )
        if len(keys) < FEWEST:
            raise OrderRefusedError(
                f"site {self.site}: secure summation needs at least {FEWEST} sites; got {len(keys)}"
            )
        if keys.get(self.site) != self.private.public_key():
            raise OrderRefusedError(f"site {self.site}: the cohort does not hold this site's current key")
        if next(one["mean"] for one in cohort if one["site"] == self.site) != self.mean:
            raise OrderRefusedError(f"site {self.site}: the cohort does not hold the mean that it received")
        return keys


def check_key(found: Any, site: ClientId) -> SignedKey:
    """Return a signed key of a site, of which only the signature is not checked yet.

    Raises:
        ValueError: if it is not a mapping with the fields of a :data:`SignedKey`, or names another site.
    """
    if not isinstance(found, Mapping) or found.get("site") != site or not isinstance(site, str):
        raise ValueError("not a key of this site")
    for name, pattern in _FIELDS.items():
        if not isinstance(found.get(name), str) or not re.fullmatch(pattern, found[name], re.ASCII):
            raise ValueError(f"invalid {name}")
    return {name: found[name] for name in ("site", *_FIELDS)}


def read_cohort(text: str, site: ClientId) -> list[SignedKey]:
    """Return the cohort of an order.

    Args:
        text: the cohort as JSON.
        site: the site that reads it, for messages.

    Raises:
        OrderRefusedError: if it is not a list of signed keys.
    """
    try:
        cohort = parse_json(text)
    except ValueError:
        cohort = None
    if not isinstance(cohort, list) or not all(isinstance(one, dict) for one in cohort):
        raise OrderRefusedError(f"site {site}: the order has no valid cohort; the share is not sent")
    return cohort


def read_roster(path: Path) -> dict[ClientId, Ed25519PublicKey]:
    """Read a roster: on each line a site's name and its public signing key, as ssh-keygen writes it.

    Raises:
        ConfigError: naming the invalid line.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError(f"roster {path} cannot be read: {cause}") from None
    roster: dict[ClientId, Ed25519PublicKey] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, text = line.strip().partition(" ")
        try:
            key = load_ssh_public_key(text.encode())
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey) or name in roster:
            raise ConfigError(
                f"roster {path}:{number}: expected a site's name that no other line has, and its key "
                "'ssh-ed25519 ...'"
            )
        # Who has a key under several names counts as several sites, and a sum could have a single other one.
        if same := [other for other, known in roster.items() if known == key]:
            raise ConfigError(
                f"roster {path}:{number}: site {name} has the key of site {same[0]}; each site needs a key "
                "of its own (ssh-keygen -t ed25519)"
            )
        roster[name] = key
    return roster


def masked(share: Share, identity: Identity, cohort: Sequence[SignedKey], index: int) -> NDArray[np.int64]:
    """Return a site's masked share.

    Args:
        share: the site's share, with N numbers.
        identity: the site.
        cohort: the signed keys of all sites in the sum.
        index: the round.

    Returns:
        (N + 1,) the masked numbers in order of the tensors' names, then the masked weight.

    Raises:
        OrderRefusedError: as :meth:`Identity.peers`.
        NonFiniteShareError: if a number is too large for fixed point.
    """
    peers = identity.peers(cohort)
    total = _to_fixed(share, len(peers), identity.site)
    about = [identity.experiment, *mask_of(cohort, index)]
    for name, key in peers.items():
        if name == identity.site:
            continue
        secret = identity.private.exchange(key)
        pair = sorted((name, identity.site))
        info = json.dumps(["prrfl secure sum", *about, pair]).encode()
        stream = _stream(HKDF(SHA256(), SEED, salt=None, info=info).derive(secret), len(total))
        total = total + stream if identity.site == pair[0] else total - stream
    total = total + _stream(_seed(identity, about, share), len(total))
    return total.view(np.int64)


def own_seed(share: Share, identity: Identity, cohort: Sequence[SignedKey], index: int) -> bytes:
    """Return the seed of the site's own mask for a share, which it adds besides the masks of its pairs.

    Raises:
        OrderRefusedError: as :meth:`Identity.peers`.
    """
    identity.peers(cohort)
    return _seed(identity, [identity.experiment, *mask_of(cohort, index)], share)


def mask_of(cohort: Sequence[SignedKey], index: int) -> list[Any]:
    """Return what the masks of an experiment depend on: the round, and the sites with their keys and means.

    Keys are compared by their bytes, so that writing the same hex digits in upper case is not a new mask.
    """
    sites = [[one["site"], bytes.fromhex(one["key"]).hex(), one["mean"]] for one in cohort]
    return [index, sorted(sites)]


def digest_of(share: Share) -> str:
    """Return the SHA-256 of a share."""
    return hashlib.sha256(to_bytes(share)).hexdigest()


def unmasked(parts: Sequence[Tensor], seeds: Sequence[bytes], like: Tensors) -> Share:
    """Return the mean of a cohort's shares, with the sum of their weights.

    Args:
        parts: (N + 1,) int64 masked share of each site, from :func:`masked`.
        seeds: seed of each site's own mask, from :func:`own_seed`.
        like: names, shapes and types of a share.
    """
    total = np.zeros(sum(t.numel() for t in like.values()) + 1, np.uint64)
    for part in parts:
        total += part.numpy().view(np.uint64)
    for seed in seeds:
        total -= _stream(seed, len(total))
    sums = torch.from_numpy(total.view(np.int64).astype(np.float64) / SCALE)
    weight = sums[-1].item() or math.nan  # without a weight there is no mean; the caller refuses NaN
    mean, at = {}, 0
    for key in sorted(like):
        size = like[key].numel()
        values = (sums[at : at + size] / weight).reshape(like[key].shape)
        mean[key] = (values if like[key].is_floating_point() else values.round()).to(like[key].dtype)
        at += size
    return Share({key: mean[key] for key in like}, weight)


def is_plausible(summed: Share, weight: float) -> bool:
    """Return whether the result of :func:`unmasked` can be one of shares with this sum of weights.

    If masks are left in it, because a site sent a wrong part, it is not.
    """
    if not math.isclose(summed.weight, weight, abs_tol=1e-6):
        return False
    largest = max((t.double().abs().max().item() for t in summed.tensors.values() if t.numel()), default=0.0)
    return largest * weight <= LARGEST * (1 + 2**-10)  # the mean is rounded, to 11 binary places or more


def check_part(part: Mapping[str, Tensor], like: Tensors, whose: str) -> None:
    """Check that a masked share has the right length and type.

    Args:
        part: the tensors that a site sent.
        like: names, shapes and types of a share.
        whose: the site, for messages.

    Raises:
        StateMismatchError: if it has not.
    """
    expected = sum(t.numel() for t in like.values()) + 1
    found = part.get("masked")
    if len(part) != 1 or found is None or found.dtype != torch.int64 or found.shape != (expected,):
        raise StateMismatchError(
            f"{whose}: its masked share is invalid; expected {expected} whole numbers of 64 bits"
        )


def _to_fixed(share: Share, sites: int, whose: str) -> NDArray[np.uint64]:
    flat = [share.tensors[key].double().reshape(-1) for key in sorted(share.tensors)]
    values = torch.cat([torch.cat(flat) * share.weight, torch.tensor([share.weight], dtype=torch.float64)])
    largest = values.abs().max().item()
    if not largest < LARGEST / sites:
        raise NonFiniteShareError(
            f"site {whose}: its share holds {largest:.3g}, which is too large for secure summation of "
            f"{sites} sites; expected less than {LARGEST / sites:.3g}"
        )
    return cast(NDArray[np.uint64], (values * SCALE).round().to(torch.int64).numpy().view(np.uint64))


def _seed(identity: Identity, about: Sequence[Any], share: Share) -> bytes:
    # With the share's digest, so that a folder restored from a copy cannot put the mask on another share.
    info = json.dumps(["prrfl secure sum own mask", *about, identity.site, digest_of(share)]).encode()
    return HKDF(SHA256(), SEED, salt=None, info=info).derive(identity.private.private_bytes_raw())


def _stream(key: bytes, count: int) -> NDArray[np.uint64]:
    # Each key is used only once, so the nonce may be constant.
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(8 * count)), "<u8")


def _statement(experiment: str, site: ClientId, key: str, mean: str) -> bytes:
    return json.dumps(["prrfl secure sum key", experiment, site, key, mean]).encode()
