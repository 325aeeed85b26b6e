"""``prrfl inspect`` and ``generate``: what leaves a site, and data to try things on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from prrfl.cli.screen import console


def inspect(
    network: Annotated[str, typer.Option(help="network by name")] = "vgg16_slim",
    classes: Annotated[int, typer.Option(min=2, max=1000, help="number of classes")] = 3,
    ratio: Annotated[float, typer.Option(min=0, max=1, help="low-frequency ratio")] = 0.7,
    wire: Annotated[
        bool, typer.Option("--wire", help="list instead what travels in a round over real sites, in bytes")
    ] = False,
    method: Annotated[str, typer.Option(help="of --wire: federated method")] = "prrfl",
    share_bits: Annotated[str, typer.Option(help="of --wire: bits of each number that travels")] = "32",
    secure: Annotated[bool, typer.Option("--secure", help="of --wire: under secure summation")] = False,
) -> None:
    """List what PFA does with every tensor of a network, and how much of it leaves a site."""
    if wire:
        names = ("nv", "bkl", "mel") if classes == 3 else tuple(f"c{k}" for k in range(classes))
        settings = {"network": network, "method": method, "share_bits": share_bits, "r0": ratio}
        show_wire({**settings, "classes": names}, secure)
        return
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


WHAT = {
    "step": "what is asked",
    "experiment": "the run's name",
    "site": "the site's name",
    "round": "index of the round",
    "settings": "the training's settings, as JSON",
    "version": "of prrfl",
    "secure": "whether shares are masked",
    "cohort": "the signed keys of all in the sum",
    "mean.layout": "names and shapes of the mean's tensors",
    "records": "losses and scores of the site's networks: no image, no name, no prediction of one",
    "share.layout": "names and shapes of the share's tensors",
    "weight": "of the share in the mean",
    "key": "the site's signed public key for this run",
    "seed": "of the site's own mask on its part of the sum, once all parts are there",
}
"""What the fields of orders and answers are, for people."""


def show_wire(settings: Mapping[str, object], secure: bool) -> None:
    """Print all that travels between the server and one site in a round."""
    from prrfl.cli.federating import needs_flower

    needs_flower()
    from prrfl.flower.wire import measure

    items = measure(settings, secure)
    masked = "one site's part of the masked sum" if secure else "what the method shares"
    arrays = {"share": masked, "mean": "the mean of all sites' shares"}
    table = Table(title=f"{settings['method']}: one round at one site, one local epoch")
    for name in ("step", "goes to", "field", "what it is", "bytes"):
        table.add_column(name, justify="right" if name == "bytes" else "left", overflow="fold")
    for item in items:
        what = WHAT.get(item.name) or arrays[item.name.partition(".")[0]]
        table.add_row(item.step, f"the {item.to}", item.name, what, f"{item.bytes:,}")
    console.print(table)
    for to in ("server", "site"):
        console.print(f"In all to the {to}: {sum(i.bytes for i in items if i.to == to):,} bytes")
    console.print(
        "Images, their names, labels and predictions and the personalised network stay at the site."
    )


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
