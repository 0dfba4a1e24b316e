"""Machines as namespaces of the network: each with an address, names of the others, and a cable.

A machine that is cut off says nothing any more, and whoever speaks to it is told nothing: packets
go nowhere. That nobody has its address would be told after three seconds, so every machine knows
where every other is, for good.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PREFIX: Final = "cra-m-"
"""Of every namespace; what bears it and is there when a run begins was left over."""
SWITCH: Final = PREFIX + "switch"
"""The namespace of the bridge that all cables end at: of its own, since the firewall of the machine
that all of this runs on has a say in what goes over that machine's bridges. Docker's says no."""
CABLE: Final = "cra-machines"
"""That machine's own cable."""
SUBNET: Final = "10.213.77"
GATE: Final = f"{SUBNET}.1"
"""Address of the machine that all of this runs on."""

_FILES: Final = Path("/etc/netns")
"""`ip netns exec NAME` puts what is in the folder of that name over /etc."""


class NoMachinesError(Exception):
    """Namespaces cannot be made here; the message says why."""


@dataclass
class Machine:
    """One namespace."""

    name: str
    number: int
    wired: bool = field(default=True)

    @property
    def namespace(self) -> str:
        """What `ip netns` calls it."""
        return PREFIX + self.name

    @property
    def address(self) -> str:
        """Its address."""
        return f"{SUBNET}.{self.number}"

    @property
    def _port(self) -> str:
        """The end of its cable at the bridge."""
        return f"port{self.number}"

    def command(self, *command: str) -> list[str]:
        """Return a command as it is to be run for that it runs on this machine."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def cut(self) -> None:
        """Pull its cable: no packet comes or goes, and nobody is told."""
        _ip("-n", SWITCH, "link", "set", self._port, "down")
        self.wired = False

    def connect(self) -> None:
        """Plug it in again."""
        _ip("-n", SWITCH, "link", "set", self._port, "up")
        self.wired = True


class Network:
    """A bridge and the machines at it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.machines: Final = {
            name: Machine(name, number) for number, name in enumerate(names, start=11)
        }

    def build(self, hosts: Mapping[str, Sequence[str]]) -> None:
        """Make all of it.

        Args:
            hosts: the machines behind each name; an empty list stands for the one all runs on.
        """
        _ip("netns", "add", SWITCH)
        _ip("-n", SWITCH, "link", "add", "bridge", "type", "bridge")
        _ip("-n", SWITCH, "link", "set", "bridge", "up")
        self._wire("port1", CABLE, 1)
        lines = ["127.0.0.1 localhost"]
        for name, behind in hosts.items():
            found = [self.machines[one].address for one in behind] or [GATE]
            lines += [f"{address} {name}" for address in found]
        for one in self.machines.values():
            folder = _FILES / one.namespace
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts").write_text("\n".join(lines) + "\n")
            _ip("netns", "add", one.namespace)
            self._wire(one._port, "eth0", one.number, one.namespace)
            _ip("-n", one.namespace, "link", "set", "lo", "up")
            self._introduce(one)

    def _wire(self, port: str, device: str, number: int, namespace: str = "") -> None:
        """Lay a cable between the bridge and a device, here or in a namespace."""
        inside = ["-n", namespace] if namespace else []
        there = ["netns", namespace] if namespace else []
        end = ["type", "veth", "peer", "name", port, "netns", SWITCH]
        _ip("link", "add", device, "address", _mac(number), *there, *end)
        _ip("-n", SWITCH, "link", "set", port, "master", "bridge", "up")
        _ip(*inside, "address", "add", f"{SUBNET}.{number}/24", "dev", device)
        _ip(*inside, "link", "set", device, "up")

    def _introduce(self, machine: Machine) -> None:
        """Have a machine and the one all runs on know where every other is, for good."""
        known = [1, *(one.number for one in self.machines.values() if one is not machine)]
        _ip("-n", machine.namespace, "-batch", "-", told=[_neighbour(n, "eth0") for n in known])
        _ip("-batch", "-", told=[_neighbour(machine.number, CABLE)])


def _neighbour(number: int, device: str) -> str:
    address = f"{SUBNET}.{number} lladdr {_mac(number)}"
    return f"neighbour replace {address} dev {device} nud permanent"


def _mac(number: int) -> str:
    return f"02:0a:d5:4d:00:{number:02x}"


def _ip(*arguments: str, told: Sequence[str] = ()) -> str:
    done = subprocess.run(
        ["ip", *arguments], input="\n".join(told), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def remove() -> None:
    """Take down whatever there is of machines, and end what runs on them."""
    for line in _ip("netns", "list").splitlines():
        name = line.split()[0]
        if name.startswith(PREFIX):
            for pid in _ip("netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _ip("netns", "delete", name)
    if Path("/sys/class/net", CABLE).exists():  # the others have gone with their namespaces
        _ip("link", "delete", CABLE)
    for folder in _FILES.glob(f"{PREFIX}*"):
        shutil.rmtree(folder)


@contextlib.contextmanager
def network(names: Sequence[str], hosts: Mapping[str, Sequence[str]]) -> Iterator[Network]:
    """Make machines, and take them down in the end whatever happens.

    Args:
        names: of the machines.
        hosts: see `Network.build`.

    Raises:
        NoMachinesError: namespaces cannot be made here, or another run has made them.
    """
    if sys.platform != "linux":
        raise NoMachinesError(f"namespaces of the network are Linux's, and this is {sys.platform}")
    if shutil.which("ip") is None:
        raise NoMachinesError("the program `ip` is missing; on Debian and Ubuntu: iproute2")
    if os.geteuid() != 0:
        raise NoMachinesError("namespaces of the network need root")
    with Path(tempfile.gettempdir(), "cra-machines.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NoMachinesError("another run has machines up") from None
        remove()  # left over from a run that was killed
        try:
            made = Network(names)
            try:
                made.build(hosts)
            except RuntimeError as error:  # such as root of a container, who may not
                raise NoMachinesError(str(error)) from error
            yield made
        finally:
            remove()
