"""What a service gives back of the memory that a large request took."""

import platform
import subprocess
import sys

import pytest

_ASK = """
import sys, threading, psutil
from cra.shared import server

if sys.argv[1] == "service":
    server._give_back_large_blocks()
turn, kept = threading.Barrier(8), []

def ask():
    for size in (10, 8, 9, 7, 8, 6, 9, 5, 7):
        picture = b"x" * (size * 2**20)
        kept.append(bytearray(4000))  # what stays behind large blocks keeps a heap from shrinking
        copy = b"y" * (size * 2**19)
        kept.append(bytearray(4000))
        turn.wait()
        del picture, copy
        turn.wait()

before = psutil.Process().memory_info().rss
threads = [threading.Thread(target=ask) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print((psutil.Process().memory_info().rss - before) >> 20)
"""


def _kept(who: str) -> int:
    """Return the MiB that a process has more after eight threads took pictures, and freed them."""
    command = [sys.executable, "-c", _ASK, who]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_what_large_requests_took_goes_back() -> None:
    """A service keeps next to nothing of it; a process that does not ask malloc so keeps much."""
    assert _kept("service") < 16
    assert _kept("other") > 64
