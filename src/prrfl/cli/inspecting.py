"""``prrfl inspect``: what leaves a site."""

from collections.abc import Mapping
from typing import Annotated

import typer
from rich.table import Table

from prrfl.cli.options import names_in
from prrfl.cli.screen import console, print_table


def inspect(
    network: Annotated[str, typer.Option(help="name of the network")] = "vgg16_slim",
    classes: Annotated[int, typer.Option(min=2, max=1000, help="number of classes")] = 3,
    freeze: Annotated[str | None, typer.Option(help="tensors that do not train, as for prrfl train")] = None,
    ratio: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="PFA's low-frequency ratio; by default that of the first round"),
    ] = None,
    wire: Annotated[
        bool, typer.Option("--wire", help="list what travels in a round over real sites instead, in bytes")
    ] = False,
    method: Annotated[str, typer.Option(help="with --wire: federated method")] = "prrfl",
    loss: Annotated[str, typer.Option(help="with --wire: the loss; auto is the method's")] = "auto",
    counts: Annotated[str, typer.Option(help="with --wire: class counts of the site or federation")] = "site",
    share_bits: Annotated[str, typer.Option(help="with --wire: bits of each number that travels")] = "32",
    secure: Annotated[bool, typer.Option("--secure", help="with --wire: use secure summation")] = False,
) -> None:
    """List what PFA does with each tensor of a network, and how much leaves a site."""
    from prrfl.pfa import R0

    ratio = R0 if ratio is None else ratio
    if wire:
        names = ("nv", "bkl", "mel") if classes == 3 else tuple(f"c{k}" for k in range(classes))
        settings = {"network": network, "method": method, "share_bits": share_bits, "r0": ratio}
        settings |= {"freeze": freeze} if freeze else {}
        chosen = {"loss": loss, "counts": counts, "prototypes": "per-round"}
        show_wire({**settings, **chosen, "classes": names}, secure)
        return
    from prrfl.models import build_network
    from prrfl.models.freezing import frozen_keys
    from prrfl.pfa import low_band_amplitudes, treatment
    from prrfl.tensors import count_bytes, norm_keys

    module = build_network(network, classes)
    state, local = module.state_dict(), norm_keys(module)
    frozen = frozen_keys(module, names_in(freeze or ""))
    sent = low_band_amplitudes({key: state[key] for key in state if key not in frozen}, ratio, local)
    table = Table(title=f"{network} at low-frequency ratio {ratio}")
    for name in ("tensor", "shape", "treatment", "sent (values)"):
        table.add_column(name, justify="right" if name.startswith("sent") else "left", overflow="fold")
    for key, tensor in state.items():
        values = sent[key].numel() if key in sent else 0
        how = "frozen" if key in frozen else treatment(key, tensor, local)
        table.add_row(key, "x".join(map(str, tensor.shape)), how, f"{values:,}")
    print_table(table)
    up, whole = count_bytes(sent), count_bytes(state)
    console.print(f"Each way per round: {up:,} bytes of {whole:,}, {up / whole:.3f} of the weights")


WHAT = {
    "step": "what the site is asked to do",
    "experiment": "name of the run",
    "site": "name of the site",
    "round": "index of the round",
    "settings": "settings of the training, as JSON",
    "version": "version of prrfl",
    "secure": "whether shares are masked",
    "cohort": "signed keys of the sites in the sum",
    "class_counts": "training images of each class at all sites, if the loss needs them",
    "mean.layout": "names and shapes of the mean's tensors",
    "records": "losses and scores of the site's networks; no images, names or predictions",
    "share.layout": "names and shapes of the share's tensors",
    "weight": "weight of the share in the mean",
    "key": "the site's signed public key for this run",
    "seed": "seed of the site's own mask, sent once all parts of the sum have arrived",
}
"""What the fields of orders and answers hold."""


def show_wire(settings: Mapping[str, object], secure: bool) -> None:
    """Print everything that travels between the server and one site in a round."""
    from prrfl.cli.federating import needs_flower

    needs_flower()
    from prrfl.flower.wire import measure_wire

    items = measure_wire(settings, secure)
    shared = "what the method and the loss share; in the step count, the site's class counts"
    masked = "one site's part of the masked sum" if secure else shared
    arrays = {"share": masked, "mean": "the mean of all sites' shares"}
    table = Table(title=f"{settings['method']}: one round at one site, one local epoch")
    for name in ("step", "goes to", "field", "what it is", "bytes"):
        table.add_column(name, justify="right" if name == "bytes" else "left", overflow="fold")
    for item in items:
        what = WHAT.get(item.name) or arrays[item.name.partition(".")[0]]
        table.add_row(item.step, f"the {item.to}", item.name, what, f"{item.bytes:,}")
    print_table(table, names=3)
    for to in ("server", "site"):
        console.print(f"Total to the {to}: {sum(i.bytes for i in items if i.to == to):,} bytes")
    console.print("Images, their names, labels and predictions stay at the site.")
