"""Generated dermoscopy-like data sets: drawing, data set and cache."""

from prrfl.data.synthetic.cache import cache_folder, cached
from prrfl.data.synthetic.dataset import (
    STYLES,
    GeneratedData,
    generate,
    site_name,
    site_style,
    write_generated,
)
from prrfl.data.synthetic.drawing import SiteStyle, draw_images

__all__ = [
    "STYLES",
    "GeneratedData",
    "SiteStyle",
    "cache_folder",
    "cached",
    "draw_images",
    "generate",
    "site_name",
    "site_style",
    "write_generated",
]
