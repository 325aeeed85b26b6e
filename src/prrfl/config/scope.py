"""Who chooses a setting, and when it may change."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Scope:
    """The scope of a setting. A field of :class:`prrfl.config.TrainConfig` without one has METHOD.

    Attributes:
        resumable: it may change when a run is resumed: it says where a run is computed, not what.
        comparison: in a comparison it is ``same`` for all runs, ``free`` for each run, or part of the
            ``method``, such as ``prrfl:transfer=off``.
        of_site: in a federation over real sites, each site sets it for itself.
        of_server: in a federation over real sites, it concerns only the server and is not sent to sites.
        of_hardware: its default depends on the machine.
        of_generator: it describes generated data, and has no effect on other data.
    """

    resumable: bool = False
    comparison: Literal["same", "free", "method"] = "method"
    of_site: bool = False
    of_server: bool = False
    of_hardware: bool = False
    of_generator: bool = False


TASK = Scope(comparison="same")
METHOD = Scope()
DATA = Scope(resumable=True, comparison="same", of_site=True)
GENERATOR = Scope(comparison="same", of_site=True, of_generator=True)
ARITHMETIC = Scope(of_hardware=True)
MACHINE = Scope(resumable=True, comparison="free", of_site=True)
OUTPUT = Scope(resumable=True, comparison="free", of_server=True)
