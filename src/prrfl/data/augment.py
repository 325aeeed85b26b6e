"""The paper's training augmentation, on whole batches, with all randomness from a given generator."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prrfl.errors import ConfigError
from prrfl.parts import Parts

Range = tuple[float, float]


SMOOTHINGS = ("none", "median 3", "median 5", "gaussian 3", "gaussian 5", "noise")

SHARES = {"median 3": 3, "median 5": 3, "gaussian 3": 2, "gaussian 5": 4, "noise": 6}
"""How often each occurs, out of 18. As in the published code, a Gaussian kernel of 5 is twice as likely as
one of 3."""

GAUSSIAN = {3: (1.0, 2.0, 1.0), 5: (1.0, 4.0, 6.0, 4.0, 1.0)}
"""Rows of the Gaussian kernels, before division by their sum."""

FIELD = 2**20
"""Length of the field of normal numbers that is drawn for the noise of one epoch. Each image takes a random
window of it: drawing a number for every pixel of every image would take longer than training on a GPU."""


@dataclass(frozen=True, eq=False)
class Draws:
    """What was drawn for each of N images; probabilities are already applied.

    Attributes:
        affine: (N, 2, 3) map from output to input coordinates in [-1, 1]: flips, shift, scale, rotation.
        brightness: (N,) added to pixels of 0...255.
        smoothing: (N,) index into ``SMOOTHINGS``.
        noise_sd: (N,) standard deviation on the 0...255 scale; 0 for images without noise.
        noise_at: (N,) where in ``noise`` an image's window begins.
        noise: standard normal numbers, one field for all images.
    """

    affine: Tensor
    brightness: Tensor
    smoothing: Tensor
    noise_sd: Tensor
    noise_at: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Augmentation:
    """Flips, brightness, one of blur and noise, and one affine map (the paper's supplement; METHOD figures).

    Attributes:
        flip_p: probability of the vertical and of the horizontal flip, each.
        brightness: bound of the brightness shift, as a fraction of the full scale.
        brightness_p: its probability.
        smooth_p: probability of one of median blur, Gaussian blur and Gaussian noise, equally likely.
        noise_variance: range of the noise's variance on the 0...255 scale.
        shift: bound of the shift, as a fraction of the side.
        scale: bound of the change of scale.
        rotation: bound of the rotation, in degrees.
        affine_p: probability of shift, scale and rotation, together.
    """

    flip_p: float = 0.5
    brightness: float = 0.2
    brightness_p: float = 0.75
    smooth_p: float = 0.7
    noise_variance: Range = (5.0, 30.0)
    shift: float = 0.1
    scale: float = 0.1
    rotation: float = 15.0
    affine_p: float = 0.85

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Draw what happens to each image of a batch or data set of shape (N, C, H, W), on the CPU."""
        n, pixels = shape[0], math.prod(shape[1:])

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(n, generator=generator)

        def happens(p: float) -> Tensor:
            return torch.rand(n, generator=generator) < p

        flips = torch.stack([1.0 - 2.0 * happens(self.flip_p) for _ in range(2)])
        brightness = 255 * uniform(-self.brightness, self.brightness) * happens(self.brightness_p)
        kinds = [SMOOTHINGS.index(name) for name, share in SHARES.items() for _ in range(share)]
        kind = torch.tensor(kinds)[torch.randint(len(kinds), (n,), generator=generator)]
        smoothing = kind * happens(self.smooth_p)
        noise_sd = uniform(*self.noise_variance).sqrt() * (smoothing == SMOOTHINGS.index("noise"))
        moved = happens(self.affine_p)
        scale = 1 + uniform(-self.scale, self.scale) * moved
        angle = uniform(-self.rotation, self.rotation) * moved * (math.pi / 180)
        shift = torch.stack([2 * uniform(-self.shift, self.shift) * moved for _ in range(2)])
        windows = min(FIELD, max(1, n * pixels))
        return Draws(
            affine=_affine(flips, scale, angle, shift),
            brightness=brightness,
            smoothing=smoothing,
            noise_sd=noise_sd,
            noise_at=torch.randint(windows, (n,), generator=generator),
            noise=torch.randn(windows + pixels - 1, generator=generator),
        )

    def __call__(self, images: Tensor, drawn: Draws, rows: Tensor) -> Tensor:
        """Return augmented copies of images.

        Args:
            images: (M, C, H, W) uint8, on any device.
            drawn: what was drawn for a whole data set.
            rows: (M,) which of its images these are, on the CPU.

        Returns:
            (M, C, H, W) float32 in 0...255.

        Raises:
            ConfigError: if the images are not uint8 of rank 4.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ConfigError(
                f"augmentation takes (N, C, H, W) uint8 images, got {tuple(images.shape)} {images.dtype}; "
                "leave augment out, or give one of your own"
            )
        return apply(images, drawn, rows)


def apply(images: Tensor, draws: Draws, rows: Tensor) -> Tensor:
    """Return float32 copies of (M, C, H, W) uint8 images, changed as drawn for those rows.

    The order is brightness, blur or noise, affine. Flips are part of the affine map: they commute with the
    rest in distribution, and one interpolation is cheaper and blurs less than several.
    """

    def there(drawn: Tensor) -> Tensor:
        return drawn[rows].to(images.device, non_blocking=True)

    smoothing = draws.smoothing[rows]

    def chosen(name: str) -> Tensor:
        # Computed on the CPU: to look it up on a GPU would mean to wait for it.
        return (smoothing == SMOOTHINGS.index(name)).nonzero().squeeze(1)

    pixels = images.float()
    for size in (3, 5):
        if len(at := chosen(f"median {size}")):
            here = at.to(images.device, non_blocking=True)
            # Before brightness, which gives exactly the same result: bytes compare faster than floats.
            pixels[here] = median_blur(images[here], size).float()
    pixels.add_(there(draws.brightness).view(-1, 1, 1, 1)).clamp_(0, 255)
    for size in (3, 5):
        if len(at := chosen(f"gaussian {size}")):
            here = at.to(images.device, non_blocking=True)
            pixels[here] = gaussian_blur(pixels[here], size)
    if len(at := chosen("noise")):
        here, sd = (t.to(images.device, non_blocking=True) for t in (at, draws.noise_sd[rows[at]]))
        pixels[here] = (pixels[here] + _noise(draws, rows[at], pixels) * sd.view(-1, 1, 1, 1)).clamp_(0, 255)
    grid = functional.affine_grid(there(draws.affine), list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _noise(draws: Draws, rows: Tensor, like: Tensor) -> Tensor:
    """Return each row's window of the field of noise, in the shape and on the device of images."""
    field, at = (t.to(like.device, non_blocking=True) for t in (draws.noise, draws.noise_at[rows]))
    return field.unfold(0, math.prod(like.shape[1:]), 1)[at].view(-1, *like.shape[1:])


def median_blur(images: Tensor, size: int) -> Tensor:
    """Return the median of each size x size neighbourhood, borders replicated. (N, C, H, W) to the same.

    Uses elementwise minima and maxima of shifted images, which is several times as fast as sorting. Among
    half + 2 values neither the smallest nor the largest can be the median, so both are dropped and the next
    value is added.
    """
    padded = _pad(images, size // 2)
    height, width = padded.shape[2] - size + 1, padded.shape[3] - size + 1
    waiting = [padded[:, :, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    held = [waiting.pop() for _ in range(size * size // 2 + 2)]
    while len(held) > 1:
        for k in range(1, len(held)):
            held[0], held[k] = torch.minimum(held[0], held[k]), torch.maximum(held[0], held[k])
        for k in range(1, len(held) - 1):
            held[k], held[-1] = torch.minimum(held[k], held[-1]), torch.maximum(held[k], held[-1])
        held = held[1:-1] + ([waiting.pop()] if waiting else [])
    return held[0]


def _pad(images: Tensor, by: int) -> Tensor:
    """Return images with replicated borders. By indexing, because PyTorch cannot pad bytes on a GPU."""
    rows, columns = (
        torch.arange(-by, length + by, device=images.device).clamp_(0, length - 1)
        for length in images.shape[2:]
    )
    return images[:, :, rows[:, None], columns]


def gaussian_blur(images: Tensor, size: int) -> Tensor:
    """Return a blur by a binomial kernel of size x size, borders reflected. (N, C, H, W) to the same."""
    row = torch.tensor(GAUSSIAN[size], dtype=images.dtype)
    row = (row / row.sum()).to(images.device, non_blocking=True).expand(images.shape[1], 1, 1, size)
    padded = functional.pad(images, [size // 2] * 4, mode="reflect")
    across = functional.conv2d(padded, row, groups=images.shape[1])
    return functional.conv2d(across, row.transpose(2, 3), groups=images.shape[1])


def _affine(flips: Tensor, scale: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
    """Return (N, 2, 3) maps from output to input for square images."""
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = [
        torch.stack([flips[0] * cos, flips[0] * sin, shift[0]], dim=1),
        torch.stack([-flips[1] * sin, flips[1] * cos, shift[1]], dim=1),
    ]
    return torch.stack(rows, dim=1)


AUGMENTATIONS: Parts[type] = Parts(
    "augmentation", "prrfl.augmentations", {"paper": Augmentation}, needs=("draw", "__call__")
)
"""All augmentations by name."""
