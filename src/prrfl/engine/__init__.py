"""How an algorithm reaches its sites: the round loop, one visit to a site, and the in-process engine."""

from prrfl.engine.in_process import InProcess
from prrfl.engine.rounds import Arrival, Exchange, run_rounds
from prrfl.engine.site import Visitor

__all__ = ["Arrival", "Exchange", "InProcess", "Visitor", "run_rounds"]
