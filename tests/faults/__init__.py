"""Faults: parts of the local stack are killed, frozen, cut off and starved while it works.

`python -m tests.faults` runs every one in turn; docs/faults.md says what came of it.
"""
