"""``prrfl inspect`` and ``generate``: what leaves a site, and data to try things on."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from prrfl.cli.screen import console


def inspect(
    network: Annotated[str, typer.Option(help="network by name")] = "vgg16_slim",
    classes: Annotated[int, typer.Option(min=2, help="number of classes")] = 3,
    ratio: Annotated[float, typer.Option(min=0, max=1, help="low-frequency ratio")] = 0.7,
) -> None:
    """List what PFA does with every tensor of a network, and how much of it leaves a site."""
    from prrfl.models import build_network
    from prrfl.pfa import low_band_amplitudes, treatment
    from prrfl.tensors import count_bytes, norm_keys

    module = build_network(network, classes)
    state, local = module.state_dict(), norm_keys(module)
    sent = low_band_amplitudes(state, ratio, local)
    table = Table(title=f"{network} at low-frequency ratio {ratio}")
    for name in ("tensor", "shape", "treatment", "sent (values)"):
        table.add_column(name, justify="right" if name.startswith("sent") else "left", overflow="fold")
    for key, tensor in state.items():
        values = sent[key].numel() if key in sent else 0
        table.add_row(key, "x".join(map(str, tensor.shape)), treatment(key, tensor, local), f"{values:,}")
    console.print(table)
    up, whole = count_bytes(sent), count_bytes(state)
    console.print(f"Each way per round: {up:,} bytes of {whole:,}, {up / whole:.3f} of the weights")


def generate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder to make")],
    sites: Annotated[int, typer.Option(min=1, help="number of sites")] = 4,
    images: Annotated[int, typer.Option(min=18, help="images per site")] = 320,
    image_size: Annotated[int, typer.Option(min=32, help="side of the images, in pixels")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same images")] = 0,
) -> None:
    """Write a generated dermoscopy-like data set in the published layout."""
    from prrfl.data.synthetic import GeneratedData, write_generated

    write_generated(GeneratedData(sites, images, image_size, seed), folder)
    console.print(f"{sites} sites of {images} images: {folder}", soft_wrap=True)
