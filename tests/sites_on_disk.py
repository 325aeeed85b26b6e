"""Tiny sites in the published layout, written with Pillow."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_layout(folder: Path, sites: int = 2, train: int = 9, other: int = 6, size: int = 32) -> Path:
    """Write sites clientA, clientB, ... whose class shows in the colour, so that they can be learnt."""
    draw = np.random.default_rng(0)
    for k in range(sites):
        site = f"client{chr(65 + k)}"
        images = folder / "data" / site / f"img_resize{size}"
        tables = folder / "csv_folder" / site
        images.mkdir(parents=True)
        tables.mkdir(parents=True)
        for split, count in (("train", train), ("valid", other), ("test", other)):
            rows = ["image_id,label"]
            for n in range(count):
                name, label = f"{site}_{split}_{n}", n % 3
                pixels = draw.integers(0, 150, (size, size, 3), dtype=np.uint8)
                pixels[..., label] += 90
                Image.fromarray(pixels).save(images / f"{name}.png")
                rows.append(f"{name},{label}")
            (tables / f"{split}_{site}.csv").write_text("\n".join(rows) + "\n")
    return folder
