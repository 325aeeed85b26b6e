"""Secure summation: the server learns the sum of the sites' shares, and no single one.

As in Bonawitz et al. (CCS 2017, https://doi.org/10.1145/3133956.3133982), without recovery of dropped sites:
every two sites agree on a mask, which one of them adds and the other subtracts, so that masks vanish in the
sum of all. Each site adds a mask of its own as well, whose seed it is asked for once all of the cohort have
sent their parts, and which it reveals for one cohort in a round alone. Numbers are in fixed point modulo
2^64, where a masked one is uniformly distributed.

So a site that drops out voids the sum, which is asked for again from the others, and what comes late from it
is of no use: the sum that it belongs to stays under masks whose seeds are never revealed. A site that drops
out after others have revealed theirs is waited for: its share goes into that sum, or the round into none.

Keys: each site signs, with the key that the consortium's roster holds (Ed25519), a key of its own for the
experiment (X25519). A pair's secret, through HKDF with experiment, round, names and keys of the whole
cohort, is the key of ChaCha20, whose stream is the mask; a site's own mask comes from its private key in the
same way. So another cohort has other masks.

Limits. The server is taken to be honest but curious: it may look at everything, but follows the protocol.
Sums of two rounds whose cohorts differ by a site tell about that site's share, as far as the other shares
changed little. If all sites but one collude with the server, nothing protects that one. Scores and losses
are not masked. The code has been tested, not reviewed by a cryptographer.
"""

import json
import math
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
from prrfl.types import ClientId, Share, Tensors

SCALE = 2.0**32
"""Steps of a unit: rounding errs by 2^-33 at most, and sums may reach 2^31."""

FEWEST = 3
"""Sites in a sum; of two, each would learn the other's share."""

SEED = 32
"""Bytes of a mask's seed, the key of ChaCha20."""

SignedKey = Mapping[str, str]
"""A site's public key for one experiment: ``site``, ``key`` and ``signature``, the latter two in hex."""


@dataclass(frozen=True, eq=False)
class Identity:
    """A site in one experiment."""

    site: ClientId
    experiment: str
    roster: Mapping[ClientId, Ed25519PublicKey]
    signing: Ed25519PrivateKey
    private: X25519PrivateKey

    @classmethod
    def load(
        cls,
        site: ClientId,
        experiment: str,
        signing_key: Path,
        roster: Mapping[ClientId, Ed25519PublicKey],
        own: Path,
    ) -> Self:
        """Read the signing key, and the experiment's key, which is made at first.

        Raises:
            ConfigError: if a key is no such key, or the roster does not have the site's.
        """
        try:
            signing = load_ssh_private_key(read_bytes(signing_key), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm, OSError) as cause:
            raise ConfigError(f"signing key {signing_key} cannot be read: {cause}") from None
        if not isinstance(signing, Ed25519PrivateKey):
            raise ConfigError(f"signing key {signing_key} is no Ed25519 key; ssh-keygen -t ed25519 makes one")
        if roster.get(site) != signing.public_key():
            raise ConfigError(
                f"the roster does not hold the public key of {signing_key} as that of site {site}"
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
        """Return the site's public key for the experiment, signed."""
        key = self.private.public_key().public_bytes_raw()
        signature = self.signing.sign(_statement(self.experiment, self.site, key))
        return {"site": self.site, "key": key.hex(), "signature": signature.hex()}

    def peers(self, cohort: Sequence[SignedKey]) -> dict[ClientId, X25519PublicKey]:
        """Return the keys of all sites of a cohort, which the roster vouches for.

        Raises:
            OrderRefusedError: if it is too small or lacks this site, or a key is not signed by who is named.
        """
        keys: dict[ClientId, X25519PublicKey] = {}
        for one in cohort:
            try:
                name, key, signature = one["site"], bytes.fromhex(one["key"]), bytes.fromhex(one["signature"])
                if name in keys:
                    raise OrderRefusedError(f"site {self.site}: the cohort names site {name} twice")
                self.roster[name].verify(signature, _statement(self.experiment, name, key))
                keys[name] = X25519PublicKey.from_public_bytes(key)
                # A key that some numbers make useless gives no secret with anybody's.
                self.private.exchange(keys[name])
            except (KeyError, TypeError, ValueError, InvalidSignature):
                whose = one.get("site", "?") if isinstance(one, Mapping) else "?"
                raise OrderRefusedError(
                    f"site {self.site}: the key of site {whose} is not signed as the roster asks, or no key; "
                    "the share is not sent"
                ) from None
        if len(keys) < FEWEST:
            raise OrderRefusedError(
                f"site {self.site}: {len(keys)} sites are too few for secure summation; expected {FEWEST}"
            )
        if keys.get(self.site) != self.private.public_key():
            raise OrderRefusedError(f"site {self.site}: the cohort does not hold this site's own key")
        return keys


def read_cohort(text: str, site: ClientId) -> list[SignedKey]:
    """Return the cohort that an order names.

    Raises:
        OrderRefusedError: if it names none.
    """
    try:
        cohort = parse_json(text)
    except ValueError:
        cohort = None
    if not isinstance(cohort, list) or not all(isinstance(one, dict) for one in cohort):
        raise OrderRefusedError(f"site {site}: the order names no cohort; the share is not sent")
    return cohort


def read_roster(path: Path) -> dict[ClientId, Ed25519PublicKey]:
    """Read a roster: lines of a site's name and its public signing key, as ssh-keygen writes it.

    Raises:
        ConfigError: naming the line at fault.
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
                f"roster {path}:{number}: expected a site's name, once, and its key 'ssh-ed25519 ...'"
            )
        roster[name] = key
    return roster


def masked(share: Share, identity: Identity, cohort: Sequence[SignedKey], index: int) -> NDArray[np.int64]:
    """Return a site's part of the sum of a round.

    Args:
        share: the site's share.
        identity: the site.
        cohort: all whose shares are in the sum.
        index: the round.

    Returns:
        One number for each of the share's, in order of the tensors' names, then the weight. (N + 1,)

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
    total = total + _stream(_seed(identity, about), len(total))
    return total.view(np.int64)


def own_seed(identity: Identity, cohort: Sequence[SignedKey], index: int) -> bytes:
    """Return the seed of the mask that a site puts on its part of a round's sum beside those of pairs.

    Raises:
        OrderRefusedError: as :meth:`Identity.peers`.
    """
    identity.peers(cohort)
    return _seed(identity, [identity.experiment, *mask_of(cohort, index)])


def mask_of(cohort: Sequence[SignedKey], index: int) -> list[Any]:
    """Return what the masks of an experiment depend on: the round, and the sites with their keys.

    Keys stand as their bytes do, so that another way to write one is no other mask.
    """
    return [index, sorted([one["site"], bytes.fromhex(one["key"]).hex()] for one in cohort)]


def unmasked(parts: Sequence[Tensor], seeds: Sequence[bytes], like: Tensors) -> Share:
    """Return the mean of a cohort's shares, its weight being the sum of theirs.

    Args:
        parts: of all its sites, as :func:`masked` gives them, (N + 1,) int64 each.
        seeds: of all its sites, as :func:`own_seed` gives them.
        like: names, shapes and types of a share.
    """
    total = np.zeros(sum(t.numel() for t in like.values()) + 1, np.uint64)
    for part in parts:
        total += part.numpy().view(np.uint64)
    for seed in seeds:
        total -= _stream(seed, len(total))
    sums = torch.from_numpy(total.view(np.int64).astype(np.float64) / SCALE)
    weight = sums[-1].item() or math.nan  # nothing is no weight; what is divided by it says so
    mean, at = {}, 0
    for key in sorted(like):
        size = like[key].numel()
        values = (sums[at : at + size] / weight).reshape(like[key].shape)
        mean[key] = (values if like[key].is_floating_point() else values.round()).to(like[key].dtype)
        at += size
    return Share({key: mean[key] for key in like}, weight)


def check_part(part: Mapping[str, Tensor], like: Tensors, whose: str) -> None:
    """Raise unless a part of a sum is as long as it must be.

    Raises:
        StateMismatchError: naming whose it is.
    """
    expected = sum(t.numel() for t in like.values()) + 1
    found = part.get("masked")
    if len(part) != 1 or found is None or found.dtype != torch.int64 or found.shape != (expected,):
        raise StateMismatchError(f"{whose}: its masked share is not one of {expected} numbers")


def _to_fixed(share: Share, sites: int, whose: str) -> NDArray[np.uint64]:
    flat = [share.tensors[key].double().reshape(-1) for key in sorted(share.tensors)]
    values = torch.cat([torch.cat(flat) * share.weight, torch.tensor([share.weight], dtype=torch.float64)])
    largest = values.abs().max().item()
    if not largest < 2.0**62 / SCALE / sites:
        raise NonFiniteShareError(
            f"site {whose}: its share holds {largest:.3g}, too large for the fixed point of secure summation"
        )
    return cast(NDArray[np.uint64], (values * SCALE).round().to(torch.int64).numpy().view(np.uint64))


def _seed(identity: Identity, about: Sequence[Any]) -> bytes:
    info = json.dumps(["prrfl secure sum own mask", *about, identity.site]).encode()
    return HKDF(SHA256(), SEED, salt=None, info=info).derive(identity.private.private_bytes_raw())


def _stream(key: bytes, count: int) -> NDArray[np.uint64]:
    # A key is used once, so the nonce may stay the same.
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(8 * count)), "<u8")


def _statement(experiment: str, site: ClientId, key: bytes) -> bytes:
    return json.dumps(["prrfl secure sum key", experiment, site, key.hex()]).encode()
