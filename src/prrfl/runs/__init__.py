"""Runs: from settings to a folder with all results."""
