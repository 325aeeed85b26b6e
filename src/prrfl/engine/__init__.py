"""The round loop, one visit to a site, and the simulation in one process.

The simulation over several processes is in :mod:`prrfl.engine.workers`, which only a simulation needs to load.
"""

from prrfl.engine.in_process import InProcess
from prrfl.engine.rounds import Arrival, Deployed, Engine, Exchange, Keeper, rounds_from, run_rounds
from prrfl.engine.site import Visitor

__all__ = [
    "Arrival",
    "Deployed",
    "Engine",
    "Exchange",
    "InProcess",
    "Keeper",
    "Visitor",
    "rounds_from",
    "run_rounds",
]
