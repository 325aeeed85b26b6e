"""Centralised training: what a federation could reach at best if images could travel."""

from dataclasses import dataclass

from prrfl.algorithms.local import Local


@dataclass(frozen=True)
class Centralised(Local):
    """Local training of one network on the pooled images of all sites, scored at each site.

    The pool is as many steps longer than a site as there are more images; rounds and epochs are the same.
    """
