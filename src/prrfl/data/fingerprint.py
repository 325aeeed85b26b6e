"""What data a run was trained on, in a few digests: enough to tell that it changed, and where."""

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
    """One split of one site.

    Attributes:
        images: how many.
        names: SHA-256 of their names, in their order.
        labels: SHA-256 of their labels.
        pixels: SHA-256 of what the networks are given of them.
    """

    images: int
    names: str
    labels: str
    pixels: str


Fingerprints = Mapping[ClientId, Mapping[Split, Fingerprint]]
"""Of a whole data set: by site and split."""


def fingerprints(sites: Iterable[SiteData]) -> dict[ClientId, dict[Split, Fingerprint]]:
    """Return the fingerprints of all sites' splits."""
    return {site.name: {name: fingerprint(site.split(name)) for name in SPLITS} for site in sites}


def fingerprint(examples: Examples) -> Fingerprint:
    """Return the fingerprint of a split, the same however its tensors lie in memory."""
    names = hashlib.sha256(json.dumps(examples.ids).encode())
    return Fingerprint(len(examples), names.hexdigest(), _digest(examples.labels), _digest(examples.inputs))


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    # Decoded images lie with their channels last: read in that order, nothing is copied.
    rows = tensor.movedim(1, -1) if tensor.ndim > 1 else tensor
    for part in torch.split(rows, 256):
        digest.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def short(data: Fingerprints) -> str:
    """Return 12 hexadecimal digits that stand for all of a data set, to be cited."""
    text = json.dumps(as_json(data), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def as_json(data: Fingerprints) -> dict[str, dict[str, dict[str, object]]]:
    """Return fingerprints as JSON has them."""
    return {site: {split: asdict(one) for split, one in splits.items()} for site, splits in data.items()}


def difference(before: Fingerprints, now: Fingerprints) -> str:
    """Return in a few words the first thing in which two data sets differ; nothing where there is none."""
    if gone := sorted(before.keys() - now.keys()):
        return f"site {gone[0]} is not there any more"
    if new := sorted(now.keys() - before.keys()):
        return f"site {new[0]} is new"
    for site, splits in before.items():
        for split, was in splits.items():
            if what := _what_differs(was, now[site][split]):
                return f"site {site}, {split}: {what}"
    return ""


def _what_differs(was: Fingerprint, now: Fingerprint) -> str:
    if was.images != now.images:
        return f"{was.images} → {now.images} images"
    if was.names != now.names:
        return "other images, or in another order"
    if was.pixels != now.pixels:
        return "other pixels under the same names"
    return "other labels" if was.labels != now.labels else ""
