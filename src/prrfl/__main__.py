"""``python -m prrfl``."""

from prrfl.cli import main

main()
