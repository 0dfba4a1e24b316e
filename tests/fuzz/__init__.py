"""Coverage-guided fuzzing: each target is a module with `check`, which takes bytes.

`make fuzz` runs them; `corpus/TARGET` holds inputs that reach all the code known so far,
`found/TARGET` those that once broke something. tests/unit/test_fuzz_cases.py replays both.
"""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TARGETS = ("events", "filters", "images", "text")
