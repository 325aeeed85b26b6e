"""Runs: from settings to a folder with everything that came of it."""
