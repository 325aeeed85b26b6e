"""The federated methods, by name."""

from prrfl.algorithms.apfl import APFL
from prrfl.algorithms.base import Aggregator, Algorithm, MeanOfShares, Traits, traits_of, variant_of
from prrfl.algorithms.centralised import Centralised
from prrfl.algorithms.ditto import Ditto
from prrfl.algorithms.fedala import FedALA
from prrfl.algorithms.fedavg import FedAvg
from prrfl.algorithms.fedbn import FedBN
from prrfl.algorithms.fedper import FedPer
from prrfl.algorithms.fedprox import FedProx
from prrfl.algorithms.fedrep import FedRep
from prrfl.algorithms.fedrod import FedRoD
from prrfl.algorithms.fenda import FENDA
from prrfl.algorithms.finetune import FineTune
from prrfl.algorithms.fml import FML
from prrfl.algorithms.ida import IDA
from prrfl.algorithms.local import Local
from prrfl.algorithms.moon import MOON
from prrfl.algorithms.prrfl import PRRFL
from prrfl.algorithms.prrfl_imbalance import PRRFLImbalance
from prrfl.algorithms.silobn import SiloBN
from prrfl.parts import Parts

__all__ = [
    "ALGORITHMS",
    "APFL",
    "BASELINE",
    "DEFAULT",
    "Aggregator",
    "Algorithm",
    "Centralised",
    "Ditto",
    "FENDA",
    "FML",
    "FedALA",
    "FedAvg",
    "FedBN",
    "FedPer",
    "FedProx",
    "FedRep",
    "FedRoD",
    "FineTune",
    "IDA",
    "Local",
    "MOON",
    "MeanOfShares",
    "PRRFL",
    "PRRFLImbalance",
    "PUBLISHED",
    "SiloBN",
    "Traits",
    "traits_of",
    "variant_of",
]

ALGORITHMS: Parts[type] = Parts("method", "prrfl.methods", {
    "prrfl": PRRFL,
    "prrfl-imbalance": PRRFLImbalance,
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedbn": FedBN,
    "silobn": SiloBN,
    "ida": IDA,
    "fml": FML,
    "finetune": FineTune,
    "fedper": FedPer,
    "fedrep": FedRep,
    "ditto": Ditto,
    "moon": MOON,
    "apfl": APFL,
    "fedrod": FedRoD,
    "fedala": FedALA,
    "fenda": FENDA,
    "local": Local,
    "centralised": Centralised,
}, needs=("start", "train", "share", "aggregator", "receive", "models"))  # fmt: skip
"""All methods by name. To add one to the package, write its file and name it here."""

DEFAULT = "prrfl"
"""The method that runs unless another is chosen. A comparison tests all other methods against it."""

PUBLISHED = (DEFAULT, "fedavg", "fedprox", "fedbn", "silobn", "ida", "fml", "local", "centralised")
"""The methods that the paper compares. `prrfl compare` runs them unless it is told otherwise."""

BASELINE = "local"
"""Training without a federation. A new site's own network is compared with it."""
