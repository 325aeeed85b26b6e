"""How an algorithm reaches its sites: the round loop, one visit to a site, and the simulation engines."""

from prrfl.engine.in_process import InProcess
from prrfl.engine.rounds import Arrival, Deployed, Engine, Exchange, run_rounds
from prrfl.engine.site import Visitor
from prrfl.engine.workers import Workers

__all__ = ["Arrival", "Deployed", "Engine", "Exchange", "InProcess", "Visitor", "Workers", "run_rounds"]
