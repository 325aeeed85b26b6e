"""Tiny sites and a tiny network for tests of everything but the paper's own network."""

from prrfl.testing.sites import tiny_examples, tiny_network, tiny_sites

__all__ = ["tiny_examples", "tiny_network", "tiny_sites"]
