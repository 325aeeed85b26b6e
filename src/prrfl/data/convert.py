"""Images of more than 8 bits, and DICOM, as 8-bit PNG with a stated intensity window."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prrfl.data.files import IMAGE_SUFFIXES, check_free, walk
from prrfl.data.images import MAX_PIXELS, has_deep_colours, upright
from prrfl.errors import DataError
from prrfl.storage.atomic import replace_folder
from prrfl.storage.reading import opened

DICOM_SUFFIXES = {".dcm", ".dicom"}


@dataclass(frozen=True)
class Window:
    """The intensities that become black and white; what lies between is scaled linearly, the rest is clipped.

    In DICOM they are those after the modality's rescaling, such as Hounsfield units.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise DataError(f"--window {self.low:g},{self.high:g}: expected two numbers, the lower one first")

    def __call__(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Return values of any type as 0...255."""
        scaled = (values.astype(np.float64) - self.low) / (self.high - self.low)
        shown: NDArray[np.uint8] = np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)
        return shown


@dataclass(frozen=True)
class Converted:
    """What was converted.

    Attributes:
        images: number of PNGs written.
        windows: number of images by the window that they were converted with.
        passed_over: numbers of files that were left out, by kind.
    """

    images: int
    windows: Counter[str]
    passed_over: Counter[str]


def convert(
    folder: Path, out: Path, window: Window | None, seen: Callable[[int], None] = lambda _: None
) -> Converted:
    """Write every image of a folder as an 8-bit PNG, under the same path with ``.png`` added; all or nothing.

    Images that have 8 bits already are written unchanged in their intensities.

    Args:
        folder: images and DICOM files, at any depth.
        out: the folder to create.
        window: intensities to show. Without one, DICOM files are shown with the window that they hold.
        seen: called with the number of files done.

    Raises:
        DataError: if an image cannot be read, or needs a window and none is given.
    """
    check_free(out)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; expected a folder of images")
    paths, others = walk(folder, IMAGE_SUFFIXES | DICOM_SUFFIXES)
    if not paths:
        raise DataError(f"folder {folder} holds no image and no file ending in .dcm")
    windows = Counter[str]()
    with replace_folder(out) as temporary:
        for count, path in enumerate(paths, start=1):
            pixels, used = (
                _dicom(path, window) if path.suffix.lower() in DICOM_SUFFIXES else _image(path, window)
            )
            target = temporary / path.relative_to(folder).with_name(f"{path.name}.png")
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(target)
            windows[used] += 1
            seen(count)
    return Converted(len(paths), windows, others)


def _image(path: Path, window: Window | None) -> tuple[NDArray[np.uint8], str]:
    try:
        with opened(path) as file, Image.open(file) as image:
            _check_size(path, image.width * image.height)
            if has_deep_colours(image):
                raise DataError(
                    f"image {path} is a colour image of 16 bits per channel; only grey images of more than 8 "
                    "bits are converted; save it with 8"
                )
            if not image.mode.startswith(("I", "F")):
                return np.array(upright(image).convert("RGB")), "8 bits already"
            values = np.array(image)
    except DataError:
        raise
    except Exception as cause:  # Pillow's decoders raise many kinds; all mean the same to the user
        raise DataError(
            f"image {path} cannot be decoded ({' '.join(str(cause).split())}); remove it"
        ) from None
    return _shown(values, path, window)


def _shown(values: NDArray[Any], path: Path, window: Window | None) -> tuple[NDArray[np.uint8], str]:
    if not np.isfinite(values).all():
        raise DataError(f"image {path} holds NaN or infinity; replace it")
    if window is None:
        raise DataError(
            f"image {path} has intensities from {values.min():g} to {values.max():g}, more than 8 bits; say "
            "which are shown as black and white with --window LOW,HIGH"
        )
    return window(values), f"{window.low:g} to {window.high:g}"


def _dicom(path: Path, window: Window | None) -> tuple[NDArray[np.uint8], str]:
    try:
        import pydicom
        from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, convert_color_space
    except ImportError:
        raise DataError("DICOM needs the package pydicom; pip install 'prrfl[dicom]'") from None
    try:
        data = pydicom.dcmread(path)
        _check_size(path, int(data.Rows) * int(data.Columns))
        if int(data.get("NumberOfFrames", 1) or 1) > 1:
            raise DataError(
                f"{path} has {data.NumberOfFrames} frames; convert each frame to a file of its own"
            )
        values = data.pixel_array
        colour = str(data.PhotometricInterpretation)
        if colour == "PALETTE COLOR":
            rgb = apply_color_lut(values, data)
            # Of 16 bits, the upper 8: they are colours for the screen, not intensities.
            return (rgb if rgb.dtype == np.uint8 else (rgb >> 8).astype(np.uint8)), "8 bits already"
        if values.ndim == 3:
            rgb = values if colour == "RGB" else convert_color_space(values, colour, "RGB")
            if rgb.dtype == np.uint8:
                return rgb, "8 bits already"
            return _shown(rgb, path, window)
        values = np.asarray(apply_modality_lut(values, data), dtype=np.float64)
    except DataError:
        raise
    except Exception as cause:  # damaged files and missing decoders raise many kinds
        raise DataError(f"{path} cannot be read as DICOM ({' '.join(str(cause).split())})") from None
    used = window or _own_window(data, path, values)
    shown = used(values)
    described = f"{used.low:g} to {used.high:g}"
    return (255 - shown if colour == "MONOCHROME1" else shown), described


def _own_window(data: Any, path: Path, values: NDArray[np.float64]) -> Window:
    """Return the first window that a DICOM file holds."""
    centre, width = data.get("WindowCenter"), data.get("WindowWidth")
    if centre is None or width is None:
        raise DataError(
            f"{path} holds no window; its intensities run from {values.min():g} to {values.max():g}; say "
            "which are shown as black and white with --window LOW,HIGH"
        )
    first = [float(value if isinstance(value, str | int | float) else value[0]) for value in (centre, width)]
    if not first[1] > 1:
        raise DataError(
            f"{path} holds a window of width {first[1]:g}, which shows no greys; give one with "
            "--window LOW,HIGH"
        )
    # PS3.3 C.11.2.1.2: of a linear window, the lowest and highest intensity.
    return Window(first[0] - 0.5 - (first[1] - 1) / 2, first[0] - 0.5 + (first[1] - 1) / 2)


def _check_size(path: Path, pixels: int) -> None:
    if pixels > MAX_PIXELS:
        raise DataError(f"image {path} has {pixels:,} pixels; at most {MAX_PIXELS:,} are read")
