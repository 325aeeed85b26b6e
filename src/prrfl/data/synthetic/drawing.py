"""Drawings of dermoscopic images, by class and by the habits of a site's camera.

Each image is a drawing, not a sample of anyone's data: a lesion whose pigment absorbs the light of textured
skin, seen by one site's camera. The class shows in the lesion only. The site shows in colours, magnification,
artefacts and class frequencies, as it does in the real data. Every image also leans towards the other classes
by a random amount, so that the classes overlap as real ones do.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prrfl.data.layout import CLASSES
from prrfl.errors import DataError

_CHUNK = 32  # images drawn at a time: the planes of a chunk at 64 px stay within a core's cache

Planes = NDArray[np.floating]
"""One float per pixel, (N, H, W), or three per pixel, (N, 3, H, W)."""


@dataclass(frozen=True)
class SiteStyle:
    """How the images of one site differ from those of another, apart from the lesions.

    Attributes:
        shares: relative frequencies of nv, bkl, mel; they need not sum to 1.
        cast: gain of the red, green and blue channel.
        drift: spread of the cast over images (standard deviation of the log gain).
        magnification: size of lesions relative to the image; 1 is half its width.
        vignette: darkening towards the corners, 0 (none) to 1 (black).
        hair: share of images with hairs, in [0, 1].
        bubbles: share of images with gel bubbles, in [0, 1].
        ruler: share of images with ruler marks, in [0, 1].
    """

    shares: tuple[float, float, float]
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    drift: float = 0.04
    magnification: float = 1.0
    vignette: float = 0.0
    hair: float = 0.0
    bubbles: float = 0.0
    ruler: float = 0.0


# What each class typically looks like: the value of every trait for nv, bkl, mel.
_TRAITS = {
    "pigment": (0.95, 0.60, 1.25),  # optical density of melanin
    "asymmetry": (0.08, 0.15, 0.55),  # of outline and of pigment
    "ragged": (0.04, 0.07, 0.15),  # notches of the border, in lesion radii
    "blur": (0.090, 0.028, 0.055),  # width of the border, in lesion radii
    "network": (0.30, 0.03, 0.20),  # honeycomb of pigment
    "blotches": (0.15, 0.22, 0.75),  # uneven pigment
    "wax": (0.05, 0.62, 0.06),  # dull yellow-grey cover
    "dots": (0.02, 0.50, 0.05),  # milia-like cysts and comedo-like openings
    "veil": (0.02, 0.06, 0.75),  # blue-grey and white patches
    "redness": (0.15, 0.12, 0.60),  # vessels and regression
}
_TYPICALITY = (2.4, 1.3)  # Beta distribution of how far an image shows its own class, not the others
_TRAIT_SPREAD = 0.35  # standard deviation of each trait's log over the images of one class

_SKIN = (0.86, 0.67, 0.60)
_MELANIN = (0.60, 1.05, 1.45)  # absorption of red, green, blue: thin pigment is tan, thick is black-brown
_BLOOD = (0.10, 0.75, 0.60)
_WAX = (0.68, 0.56, 0.43)
_BLUE_GREY = (0.36, 0.41, 0.53)
_WHITE = (0.86, 0.79, 0.79)
_MILIUM = (0.95, 0.91, 0.80)
_COMEDO = (0.22, 0.15, 0.10)
_HAIR = (0.16, 0.11, 0.09)
_INK = (0.10, 0.10, 0.12)


def draw_images(
    labels: NDArray[np.int64], style: SiteStyle, size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Draw one image per label in a site's style.

    Args:
        labels: (N,) class indices 0, 1, 2 for nv, bkl, mel.
        style: the site's style; its class shares are not used.
        size: side of the images in pixels.
        rng: source of all randomness; it is advanced.

    Returns:
        (N, size, size, 3) RGB in 0...255.

    Raises:
        DataError: if a label is not 0, 1 or 2.
    """
    invalid = labels[(labels < 0) | (labels >= len(CLASSES))]
    if len(invalid):
        raise DataError(f"generated data: label {invalid[0]} is invalid; expected 0, 1 or 2")
    images = np.empty((len(labels), size, size, 3), np.uint8)
    for start in range(0, len(labels), _CHUNK):
        chunk = labels[start : start + _CHUNK]
        colours = _skin(len(chunk), size, rng)
        colours = _lesion(colours, _traits(chunk, rng), style.magnification, rng)
        colours = _artefacts(colours, style, rng)
        colours = _camera(colours, style, rng)
        images[start : start + _CHUNK] = np.moveaxis(colours * 255 + 0.5, 1, -1).clip(0, 255)
    return images


def _traits(labels: NDArray[np.int64], rng: np.random.Generator) -> dict[str, Planes]:
    """Draw every trait of every lesion, (N, 1, 1) each: mostly of its own class, partly of the others."""
    typicality = rng.beta(*_TYPICALITY, size=(len(labels), 1))
    others = rng.dirichlet((0.5,) * len(CLASSES), size=len(labels))  # mostly one class, now and then its own
    mixture = typicality * np.eye(len(CLASSES))[labels] + (1 - typicality) * others
    values = mixture @ np.array(list(_TRAITS.values())).T
    values *= np.exp(rng.normal(0.0, _TRAIT_SPREAD, values.shape))
    return {name: _each(column) for name, column in zip(_TRAITS, values.T, strict=True)}


def _skin(n: int, size: int, rng: np.random.Generator) -> Planes:
    """Draw (n, 3, size, size) of bare skin: a tone per image, mottling, blood and fine furrows."""
    tone = np.exp(rng.normal(0.0, 0.05, (n, 1)) + rng.normal(0.0, 0.015, (n, 3)))
    texture = 1 + 0.025 * _noise(n, size, 5, rng) + 0.018 * _noise(n, size, size // 3, rng)
    blood = 0.035 * np.maximum(_noise(n, size, 9, rng) + 0.3, 0)
    light = (tone * _SKIN).astype(np.float32)[:, :, None, None] * texture[:, None]
    return _absorb(light, blood, _BLOOD)


def _lesion(
    skin: Planes, traits: dict[str, Planes], magnification: float, rng: np.random.Generator
) -> Planes:
    """Draw a lesion with the given traits on each skin."""
    n, _, size, _ = skin.shape
    u, v = _lesion_frame(n, size, magnification, rng)
    mask, depth = _outline(u, v, traits, rng)

    lean = _each(rng.uniform(0, 2 * np.pi, n))
    slope = (u * np.cos(lean) + v * np.sin(lean)).clip(-1.2, 1.2)
    evenness = 0.9 + 0.4 * depth + traits["asymmetry"] * slope
    evenness += traits["blotches"] * _noise(n, size, 6, rng) + traits["network"] * _honeycomb(u, v, rng)
    pigment = mask * traits["pigment"] * np.maximum(evenness, 0.12)
    redness = mask * traits["redness"] * _patches(n, size, 5, rng)

    colours = _absorb(_absorb(skin, pigment, _MELANIN), redness, _BLOOD)
    cover = mask * traits["wax"].clip(0, 0.85) * (0.85 + 0.15 * _noise(n, size, size // 4, rng)).clip(0, 1)
    colours = _blend(colours, cover, _WAX)
    colours = _blend(colours, mask * _dots(u, v, size, 7.0, 0.8 * traits["dots"], rng), _COMEDO)
    colours = _blend(colours, mask * _dots(u, v, size, 6.0, 0.6 * traits["dots"], rng), _MILIUM)
    veil = mask * traits["veil"].clip(0, 1)
    colours = _blend(colours, 0.75 * veil * _patches(n, size, 4, rng), _BLUE_GREY)
    return _blend(colours, 0.45 * veil * _patches(n, size, 6, rng), _WHITE)


def _lesion_frame(n: int, size: int, magnification: float, rng: np.random.Generator) -> tuple[Planes, Planes]:
    """Return the coordinates (n, size, size) of each pixel in its lesion's axes, in lesion radii."""
    y, x = _square(size)
    x = x - _each(rng.normal(0.0, 0.09, n))
    y = y - _each(rng.normal(0.0, 0.09, n))
    angle = _each(rng.uniform(0, np.pi, n))
    long = _each(0.52 * magnification * np.exp(rng.normal(0.0, 0.22, n)))
    short = long * _each(rng.uniform(0.72, 1.0, n))
    return (x * np.cos(angle) + y * np.sin(angle)) / long, (y * np.cos(angle) - x * np.sin(angle)) / short


def _outline(
    u: Planes, v: Planes, traits: dict[str, Planes], rng: np.random.Generator
) -> tuple[Planes, Planes]:
    """Return the lesion's cover in [0, 1] and the depth below its border, 1 at the centre."""
    n, size, _ = u.shape
    radius, theta = np.hypot(u, v), np.arctan2(v, u)
    distance = radius - 1
    for order in (2, 3, 4, 5):
        # Waves of odd order break the symmetry; those of even order keep it.
        height = 0.04 if order % 2 == 0 else 0.22 * traits["asymmetry"]
        wave = _each(rng.normal(0.0, 1.0, n)) * np.cos(order * theta + _each(rng.uniform(0, 2 * np.pi, n)))
        distance += height * wave
    notches = _noise(n, size, 8, rng) + 0.8 * _noise(n, size, 16, rng) + 0.5 * _noise(n, size, 28, rng)
    distance += traits["ragged"] * notches
    mask = 0.5 - 0.5 * np.tanh(distance / np.maximum(traits["blur"], 1 / size))
    return mask, np.clip(-distance, -0.5, 1)


def _artefacts(colours: Planes, style: SiteStyle, rng: np.random.Generator) -> Planes:
    """Lay hairs, gel bubbles and ruler marks over the images that have them."""
    n, _, size, _ = colours.shape
    y, x = _square(size)
    pixel = 2 / size
    colours = colours.copy()

    hairy = np.flatnonzero(rng.random(n) < style.hair)
    for _ in range(6):
        along, across = _line_frame(x, y, len(hairy), rng)
        across = across - _each(rng.normal(0.0, 0.25, len(hairy))) * along**2
        strength = _each(rng.uniform(-0.4, 0.8, len(hairy)).clip(0, 1))
        colours[hairy] = _blend(colours[hairy], strength * np.exp(-((across / (0.7 * pixel)) ** 2)), _HAIR)

    wet = np.flatnonzero(rng.random(n) < style.bubbles)
    for _ in range(5):
        centre_x, centre_y = (_each(rng.uniform(-1, 1, len(wet))) for _ in range(2))
        rim = np.hypot(x - centre_x, y - centre_y) - _each(rng.uniform(0.05, 0.16, len(wet)))
        colours[wet] = _blend(colours[wet], 0.5 * np.exp(-((rim / pixel) ** 2)) + 0.12 * (rim < 0), _WHITE)

    ruled = np.flatnonzero(rng.random(n) < style.ruler)
    along, across = _each(rng.uniform(-0.1, 0.1, len(ruled))), _each(rng.uniform(0.7, 0.9, len(ruled)))
    gap = (x - along) % (5 * pixel)
    ticks = (np.abs(y - across) < 2.2 * pixel) & (gap < pixel)
    ticks |= np.abs(y - across - 2.5 * pixel) < 0.5 * pixel
    colours[ruled] = _blend(colours[ruled], 0.75 * (ticks & (np.abs(x - along) < 0.45)), _INK)
    return colours


def _camera(colours: Planes, style: SiteStyle, rng: np.random.Generator) -> Planes:
    """Apply the vignette, the colour cast, the exposure and the sensor's noise."""
    n, _, size, _ = colours.shape
    y, x = _square(size)
    edge = np.hypot(x, y) - _each(rng.normal(1.2, 0.08, n))
    depth = _each(style.vignette * rng.uniform(0.2, 2.0, n)).clip(0, 1)
    shade = 1 - depth * (0.5 + 0.5 * np.tanh(edge / 0.08))
    gains = np.exp(rng.normal(0.0, style.drift, (n, 3)) + rng.normal(0.0, 0.05, (n, 1))) * style.cast
    noise = rng.standard_normal((n, 1, size, size), np.float32)
    colours = colours * gains.astype(np.float32)[:, :, None, None] * shade[:, None]
    return colours + np.float32(0.008) * noise


def _each(values: ArrayLike) -> Planes:
    """Turn one value per image, (N,), into (N, 1, 1), to be spread over its pixels."""
    return np.asarray(values, np.float32)[:, None, None]


def _square(size: int) -> tuple[Planes, Planes]:
    """Return the y, (1, size, 1), and the x, (1, 1, size), of the pixels in an image from -1 to 1."""
    axis = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    return axis[None, :, None], axis[None, None, :]


def _line_frame(x: Planes, y: Planes, n: int, rng: np.random.Generator) -> tuple[Planes, Planes]:
    """Return the coordinates of each pixel along and across n random lines through the image."""
    angle, offset = _each(rng.uniform(0, np.pi, n)), _each(rng.uniform(-0.9, 0.9, n))
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle) - offset


def _noise(n: int, size: int, cells: int, rng: np.random.Generator) -> Planes:
    """Draw smooth noise with mean 0 and variance near 1: a cubic B-spline through random knots."""
    knots = rng.standard_normal((n, cells + 3, cells + 3), np.float32)
    spline = _spline(size, cells)
    noise: Planes = spline @ knots @ spline.T
    return noise


def _spline(size: int, cells: int) -> Planes:
    """Return the weights (size, cells + 3) of the knots at each pixel, each row of unit length."""
    place = (np.arange(size) + 0.5) * cells / size
    distance = np.abs(place[:, None] + 1 - np.arange(cells + 3))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.maximum(2 - distance, 0) ** 3 / 6
    weights = np.where(distance < 1, near, far)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return weights.astype(np.float32)


def _patches(n: int, size: int, cells: int, rng: np.random.Generator) -> Planes:
    """Draw soft patches in [0, 1] that cover about a third of the image."""
    patches: Planes = 0.5 + 0.5 * np.tanh(3 * (_noise(n, size, cells, rng) - 0.4))
    return patches


def _honeycomb(u: Planes, v: Planes, rng: np.random.Generator) -> Planes:
    """Draw a pigment network about 0 in lesion axes: three crossing waves, bent by noise."""
    n, size, _ = u.shape
    pitch = _each(rng.uniform(17.0, 25.0, n))
    # Three waves at 120 degrees sum to round bright holes between dark lines.
    waves = np.zeros_like(u)
    for angle in (0, 2 * math.pi / 3, 4 * math.pi / 3):
        place = u * math.cos(angle) + v * math.sin(angle)
        waves += np.cos(pitch * place + _noise(n, size, 8, rng))
    return (0.6 + 0.4 * _noise(n, size, 5, rng)) * (0.3 - waves / 2)


def _dots(
    u: Planes, v: Planes, size: int, density: float, frequency: Planes, rng: np.random.Generator
) -> Planes:
    """Draw round dots in [0, 1], at most one in each cell of a grid in lesion axes.

    Args:
        u: first lesion coordinate, (N, H, W).
        v: second lesion coordinate, (N, H, W).
        size: side of the image in pixels; no dot is much narrower than a pixel.
        density: cells per lesion radius.
        frequency: share of the cells with a dot, (N, 1, 1).
        rng: source of randomness.
    """
    cells = 32  # the grid repeats after them, outside the lesion, where no dots are visible
    u, v = density * u, density * v
    column, row = np.floor(u), np.floor(v)
    image = np.arange(len(u))[:, None, None]
    draws = rng.random((4, len(u), cells, cells), np.float32)
    chance, shift_u, shift_v, width = draws[:, image, row.astype(int) % cells, column.astype(int) % cells]
    distance = np.hypot(u - column - 0.3 - 0.4 * shift_u, v - row - 0.3 - 0.4 * shift_v)
    radius = np.maximum(0.15 + 0.15 * width, 1.4 * density / size)
    dots: Planes = (chance < frequency) * (0.5 + 0.5 * shift_u) * np.exp(-((distance / radius) ** 4))
    return dots


def _absorb(colours: Planes, density: Planes, absorption: tuple[float, float, float]) -> Planes:
    """Dim (N, 3, H, W) light by a pigment of the given density (N, H, W), after Beer and Lambert."""
    passed: Planes = np.exp(-density[:, None] * np.array(absorption, np.float32)[:, None, None])
    return colours * passed


def _blend(colours: Planes, weight: NDArray[np.floating], colour: tuple[float, float, float]) -> Planes:
    """Paint one colour over (N, 3, H, W) with an opacity (N, H, W)."""
    paint = np.array(colour, np.float32)[:, None, None]
    return colours + weight[:, None].astype(np.float32) * (paint - colours)
