"""The paper's training augmentation, on whole batches, with all randomness from a given generator."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prrfl.errors import ConfigError

Range = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Draws:
    """What was drawn for each of N images; probabilities are already applied.

    Attributes:
        affine: (N, 2, 3) map from output to input coordinates in [-1, 1]: flips, shift, scale, rotation.
        brightness: (N,) added to pixels of 0...255.
        smoothing: (N,) index into ``SMOOTHINGS``.
        noise_sd: (N,) standard deviation on the 0...255 scale; 0 for images without noise.
    """

    affine: Tensor
    brightness: Tensor
    smoothing: Tensor
    noise_sd: Tensor


SMOOTHINGS = ("none", "median 3", "median 5", "gaussian 3", "gaussian 5", "noise")


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

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return augmented copies of (N, 3, H, W) uint8 images, as float32 in 0...255.

        Raises:
            ConfigError: if the images are not uint8 of rank 4.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ConfigError(
                f"augmentation takes (N, C, H, W) uint8 images, got {tuple(images.shape)} {images.dtype}; "
                "leave augment out, or give a function of your own"
            )
        return apply(images, self.draw(len(images), generator), generator)

    def draw(self, n: int, generator: torch.Generator) -> Draws:
        """Draw what happens to each of n images."""

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(n, generator=generator)

        def happens(p: float) -> Tensor:
            return torch.rand(n, generator=generator) < p

        flips = torch.stack([1.0 - 2.0 * happens(self.flip_p) for _ in range(2)])
        brightness = 255 * uniform(-self.brightness, self.brightness) * happens(self.brightness_p)
        # Median and Gaussian blur take a third each, half of it with each kernel; noise the last third.
        kind = 1 + torch.tensor([0, 1, 2, 3, 4, 4])[torch.randint(6, (n,), generator=generator)]
        smoothing = kind * happens(self.smooth_p)
        noise_sd = uniform(*self.noise_variance).sqrt() * (smoothing == SMOOTHINGS.index("noise"))
        moved = happens(self.affine_p)
        scale = 1 + uniform(-self.scale, self.scale) * moved
        angle = uniform(-self.rotation, self.rotation) * moved * (math.pi / 180)
        shift = torch.stack([2 * uniform(-self.shift, self.shift) * moved for _ in range(2)])
        return Draws(_affine(flips, scale, angle, shift), brightness, smoothing, noise_sd)


def apply(images: Tensor, draws: Draws, generator: torch.Generator) -> Tensor:
    """Return float32 copies of (N, 3, H, W) uint8 images, changed as drawn; the noise field is drawn here.

    The order is brightness, blur or noise, affine. Flips are part of the affine map: they commute with the
    rest in distribution, and one interpolation is cheaper and blurs less than several.
    """

    def there(drawn: Tensor) -> Tensor:
        return drawn.to(images.device, non_blocking=True)

    pixels = (images.float() + there(draws.brightness).view(-1, 1, 1, 1)).clamp_(0, 255)
    for index, name in enumerate(SMOOTHINGS):
        # Looked up where it was drawn, on the CPU: a GPU would have to be waited for.
        rows = (draws.smoothing == index).nonzero().squeeze(1)
        if len(rows) == 0 or name == "none":
            continue
        chosen = there(rows)
        kind, _, size = name.partition(" ")
        part = pixels[chosen]
        if kind == "noise":
            sd = there(draws.noise_sd[rows]).view(-1, 1, 1, 1)
            part = (part + normal(part.shape, generator, images.device) * sd).clamp_(0, 255)
        else:
            part = median_blur(part, int(size)) if kind == "median" else gaussian_blur(part, int(size))
        pixels[chosen] = part
    grid = functional.affine_grid(there(draws.affine), list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def normal(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Return standard normal numbers, drawn on the device itself with a seed from the CPU's generator."""
    if device.type != "cpu":
        seed = int(torch.randint(2**62, (), generator=generator))
        generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device)


def median_blur(images: Tensor, size: int) -> Tensor:
    """Return the median of each size x size neighbourhood, borders replicated. (N, C, H, W) to the same."""
    padded = functional.pad(images, [size // 2] * 4, mode="replicate").contiguous()
    # A GPU waits for launches rather than for arithmetic: sorting takes a few, selection hundreds.
    return (_median_by_selection if images.device.type == "cpu" else _median_by_sorting)(padded, size)


def _median_by_sorting(padded: Tensor, size: int) -> Tensor:
    windows = padded.unfold(2, size, 1).unfold(3, size, 1).flatten(-2)
    return windows.sort(-1).values[..., size * size // 2]


def _median_by_selection(padded: Tensor, size: int) -> Tensor:
    """Select by elementwise minima and maxima of shifted images, several times as fast as sorting on a CPU.

    Among half + 2 values neither the smallest nor the largest can be the median, so both are dropped and the
    next value comes in.
    """
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


def gaussian_blur(images: Tensor, size: int) -> Tensor:
    """Return a Gaussian blur with a size x size kernel, its width as OpenCV derives it, borders reflected."""
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    at = torch.arange(size, dtype=images.dtype, device=images.device) - size // 2
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, size)
    padded = functional.pad(images, [size // 2] * 4, mode="reflect")
    across = functional.conv2d(padded, kernel, groups=images.shape[1])
    return functional.conv2d(across, kernel.transpose(2, 3), groups=images.shape[1])


def _affine(flips: Tensor, scale: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
    """Return (N, 2, 3) maps from output to input for square images."""
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = [
        torch.stack([flips[0] * cos, flips[0] * sin, shift[0]], dim=1),
        torch.stack([-flips[1] * sin, flips[1] * cos, shift[1]], dim=1),
    ]
    return torch.stack(rows, dim=1)
