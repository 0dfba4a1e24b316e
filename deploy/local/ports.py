"""Ports: which are free, which other one could be taken, and who holds one."""

import contextlib
import errno
import os
import socket
from pathlib import Path


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Tell whether a server could listen on this port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do; else closed connections would keep a port taken for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
            raise
    return True


def find_free(start: int, taken: set[int], host: str = "127.0.0.1") -> int:
    """Return the first free port from `start` upwards and add it to `taken`.

    Raises:
        OSError: there is none.
    """
    for port in range(start, 65536):
        if port not in taken and is_free(port, host):
            taken.add(port)
            return port
    raise OSError(errno.EADDRINUSE, f"no free port from {start} upwards")


def holder(port: int) -> str:
    """Return the process that uses a port, as `PID (COMMAND)`; empty if it cannot be told.

    Not only servers do: an outgoing connection may have been given the port.
    """
    inodes = _inodes(port)
    if not inodes:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if any(_target(link) in inodes for link in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                return f"{process.name} ({command[:80]})"
    return ""


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed meanwhile
        return ""


def _inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:  # not Linux
            continue
        for line in lines:
            columns = line.split()
            if int(columns[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{columns[9]}]")
    return inodes
