"""The round loop, one visit to a site, and the simulation in one process.

Only a simulation loads :mod:`prrfl.engine.workers`, the same over several processes.
"""

from prrfl.engine.in_process import InProcess, Pooled
from prrfl.engine.rounds import Arrival, Deployed, Engine, Exchange, Keeper, rounds_from, run_rounds
from prrfl.engine.site import Visitor

__all__ = [
    "Arrival",
    "Deployed",
    "Engine",
    "Exchange",
    "InProcess",
    "Keeper",
    "Pooled",
    "Visitor",
    "rounds_from",
    "run_rounds",
]
