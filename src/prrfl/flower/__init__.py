"""Federations over real sites, on Flower. No other room imports Flower."""
