"""Exit codes of `cra` beside 0, done, 1, something is wrong, and 2, the command line is."""

from typing import Final

LATER: Final = 3
"""A part does not answer or has too much to do: the same command may do after a pause."""
INTERRUPTED: Final = 130
"""Ctrl-C; as shells give it to what SIGINT has ended."""
