"""Metrics of a worker's processes, kept in files so that their parent can show them together.

To be imported before anything that makes a metric: prometheus_client decides then where it lies.
"""

import atexit
import os
import shutil
import tempfile
from typing import Final

FOLDER: Final = tempfile.mkdtemp(prefix="cra-worker-metrics-")
"""Of one worker, or of beat, from its start to its end."""

_OWNER: Final = os.getpid()

os.environ["PROMETHEUS_MULTIPROC_DIR"] = FOLDER


@atexit.register
def _remove() -> None:
    if os.getpid() == _OWNER:  # a process of the pool must not take away its parent's
        shutil.rmtree(FOLDER, ignore_errors=True)
