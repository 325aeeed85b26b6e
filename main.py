"""The published quickstart: ``python ./main.py --theme prrfl`` on ./data and ./csv_folder."""

import argparse
import sys
from datetime import datetime
from pathlib import Path

try:
    from prrfl.cli import guarded
    from prrfl.cli.training import run_training
    from prrfl.config import load_config
    from prrfl.det import ALPHA1, ALPHA2
    from prrfl.pfa import R0
except ModuleNotFoundError as error:
    print(
        f"error: this Python does not have the package {error.name}; run `make setup` once, "
        "then `.venv/bin/python main.py`",
        file=sys.stderr,
    )
    raise SystemExit(2) from None


def main() -> None:
    """Train with the published flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--network", choices=["vgg_nb", "vgg_b"], default="vgg_nb", help="last layer without bias, or with"
    )
    parser.add_argument("--optim", choices=["sgd", "adam"], default="sgd", help="optimiser")
    parser.add_argument("--lr", type=float, default=1e-2, help="learning rate of the first rounds")
    parser.add_argument("--lr_step", type=int, default=5, help="rounds between two reductions of it")
    parser.add_argument("--lr_gamma", type=float, default=0.5, help="factor of each reduction")
    parser.add_argument("--wd", type=float, default=1e-6, help="weight decay")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--iters", type=int, default=50, help="communication rounds")
    parser.add_argument("--wk_iters", type=int, default=5, help="local epochs in each round")
    parser.add_argument(
        "--l_rate", type=float, default=R0, help="PFA's low-frequency ratio in the first round"
    )
    parser.add_argument("--alpha1", type=float, default=ALPHA1, help="DET's recover threshold")
    parser.add_argument("--alpha2", type=float, default=ALPHA2, help="DET's exchange threshold")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same bits")
    parser.add_argument("--theme", default="prrfl", help="name of the run")
    parser.add_argument("--save_path", type=Path, default=Path("experiment"), help="folder of runs")
    parser.add_argument("--allow_missing", action="store_true", help="continue if images are missing")
    flags = parser.parse_args()
    settings = {
        "network": flags.network, "optimizer": flags.optim, "lr": flags.lr, "lr_step": flags.lr_step,
        "lr_gamma": flags.lr_gamma, "weight_decay": flags.wd, "batch": flags.batch, "rounds": flags.iters,
        "epochs": flags.wk_iters, "r0": flags.l_rate, "alpha1": flags.alpha1, "alpha2": flags.alpha2,
        "seed": flags.seed, "allow_missing": flags.allow_missing, "data": Path(),
    }  # fmt: skip
    run_training(
        load_config(None, settings), flags.save_path / f"{datetime.now():%Y%m%d-%H%M%S}_{flags.theme}"
    )


if __name__ == "__main__":
    raise SystemExit(guarded(main))
