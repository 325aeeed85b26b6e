"""Digests of the data that a run is trained on, which show whether it has changed, and where."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from prrfl.data.images import SPLITS
from prrfl.types import ClientId, Examples, SiteData, Split


@dataclass(frozen=True)
class Fingerprint:
    """Digests of one split of one site.

    Attributes:
        images: number of images.
        names: SHA-256 of their names, in order.
        labels: SHA-256 of their labels.
        pixels: SHA-256 of the inputs of the networks.
    """

    images: int
    names: str
    labels: str
    pixels: str


Fingerprints = Mapping[ClientId, Mapping[Split, Fingerprint]]
"""Fingerprints of a data set, by site and split."""


def fingerprints(sites: Iterable[SiteData]) -> dict[ClientId, dict[Split, Fingerprint]]:
    """Return the fingerprints of all splits of all sites."""
    return {site.name: {name: fingerprint(site.split(name)) for name in SPLITS} for site in sites}


def fingerprint(examples: Examples) -> Fingerprint:
    """Return the fingerprint of a split. It does not depend on the memory layout of the tensors."""
    names = hashlib.sha256(json.dumps(examples.ids).encode())
    return Fingerprint(len(examples), names.hexdigest(), _digest(examples.labels), _digest(examples.inputs))


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    # Decoded images have their channels last; reading them in that order avoids a copy.
    rows = tensor.movedim(1, -1) if tensor.ndim > 1 else tensor
    for part in torch.split(rows, 256):
        digest.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def short(data: Fingerprints) -> str:
    """Return 12 hexadecimal digits that identify a data set, for citing it."""
    text = json.dumps(to_json(data), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def to_json(data: Fingerprints) -> dict[str, dict[str, dict[str, object]]]:
    """Return fingerprints as plain values for JSON."""
    return {site: {split: asdict(one) for split, one in splits.items()} for site, splits in data.items()}


def difference(before: Fingerprints, now: Fingerprints) -> str:
    """Return the first difference between two data sets, in a few words; empty if they are equal."""
    gone, new = sorted(before.keys() - now.keys()), sorted(now.keys() - before.keys())
    if gone and new:
        renamed = next((name for name in new if now[name] == before[gone[0]]), None)
        to = f"is now {renamed}" if renamed else f"is missing, site {new[0]} is new"
        return f"site {gone[0]} {to}"
    if gone or new:
        return f"site {gone[0]} is missing" if gone else f"site {new[0]} is new"
    for site, splits in before.items():
        for split, was in splits.items():
            if what := what_differs(was, now[site][split]):
                return f"site {site}, {split}: {what}"
    return ""


def what_differs(was: Fingerprint, now: Fingerprint) -> str:
    """Return the difference between two states of a split, in a few words; empty if they are equal."""
    if was.images != now.images:
        return f"{was.images} → {now.images} images"
    if was.names != now.names:
        return "other images, or another order"
    if was.pixels != now.pixels:
        return "other pixels with the same names"
    return "other labels" if was.labels != now.labels else ""
