"""One target under libFuzzer: `python -m tests.fuzz.one TARGET [OPTION …] [FOLDER …]`."""

import gc
import importlib
import sys
from types import FunctionType

import atheris

# What is to be covered; native decoders are not, and numpy only slows it down.
INSTRUMENTED = ["cra", "PIL", "pillow_heif", "json", "urllib"]
TOKENIZER = "cn_clip_bert_tokenizer"

if __name__ == "__main__":
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = importlib.import_module(f"tests.fuzz.{name}")
    for one in gc.get_objects():  # it is loaded from its file, past the hook of imports
        if isinstance(one, FunctionType) and one.__module__ == TOKENIZER:
            atheris.instrument_func(one)
    # A merge runs this program again, by a shell.
    program = f"{sys.executable} -m tests.fuzz.one {name}"
    atheris.Setup([program, *sys.argv[1:]], target.check)
    atheris.Fuzz()
