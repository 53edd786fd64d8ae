"""Hosts on one machine: network namespaces, each with one shaped link to a switch, which is a namespace of its own.

Nothing is made in the machine's own namespace, so that deleting these leaves no trace. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PREFIX = "weightcast-"  # then the id of the process that made it
INTERFACE = "fabric0"  # of every host
_CLONE_NEWNET, _CLONE_NEWNS = 0x40000000, 0x00020000
_MS_REC, _MS_SLAVE, _MNT_DETACH = 0x4000, 0x80000, 2
_NAMESPACES = Path("/run/netns")


class NoHosts(RuntimeError):
    """This machine cannot have such hosts; the text says why."""


@dataclass(frozen=True)
class Host:
    """A namespace that a process can enter."""

    name: str
    namespace: str
    address: str


class Hosts:
    """One host for each name, with a link of so many MB/s in each direction. All are gone when the `with` block ends;
    those of a process that was killed go when the next one begins."""

    def __init__(self, megabytes_per_s: dict[str, float]) -> None:
        _require()
        _remove_those_of_the_dead()
        self._rates = megabytes_per_s
        self._made: list[str] = []

    def __enter__(self) -> dict[str, Host]:
        try:
            return self._make()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        for namespace in reversed(self._made):
            with contextlib.suppress(NoHosts):
                _remove(namespace)

    def _make(self) -> dict[str, Host]:
        switch = self._add("switch")
        _ip(switch, "link", "add", "switch", "type", "bridge")
        _ip(switch, "link", "set", "switch", "up")
        hosts = {}
        for number, (name, rate) in enumerate(self._rates.items()):
            namespace, port = self._add(str(number)), f"port{number}"
            _ip(switch, "link", "add", port, "type", "veth", "peer", "name", INTERFACE, "netns", namespace)
            _ip(switch, "link", "set", port, "master", "switch", "up")
            address = f"10.77.{number // 250}.{number % 250 + 1}"
            _ip(namespace, "address", "add", f"{address}/16", "dev", INTERFACE)
            _ip(namespace, "link", "set", INTERFACE, "up")
            _ip(namespace, "link", "set", "lo", "up")
            _shape(switch, port, rate)
            _shape(namespace, INTERFACE, rate)
            hosts[name] = Host(name, namespace, address)
        return hosts

    def _add(self, what: str) -> str:
        namespace = f"{PREFIX}{os.getpid()}-{what}"
        _run("ip", "netns", "add", namespace)
        self._made.append(namespace)
        return namespace


def enter(host: Host) -> None:
    """This thread, and what it starts, is on that host from now on; UCX and others read its interfaces from /sys."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(what: str, result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {host.namespace}: {what}")

    with (_NAMESPACES / host.namespace).open() as file:
        call("setns", libc.setns(file.fileno(), _CLONE_NEWNET))
    call("unshare", libc.unshare(_CLONE_NEWNS))
    call("mount", libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None))
    libc.umount2(b"/sys", _MNT_DETACH)
    call("mount /sys", libc.mount(host.namespace.encode(), b"/sys", b"sysfs", 0, None))


def _require() -> None:
    if os.geteuid() != 0:
        raise NoHosts("network namespaces need root")
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            raise NoHosts(f"{program} is not installed (Debian's package iproute2)")


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if result.returncode != 0:
        raise NoHosts(f"{' '.join(command)}: {result.stderr.strip() or result.returncode}")
    return result.stdout


def _ip(namespace: str, *arguments: str) -> None:
    _run("ip", "-n", namespace, *arguments)


def _shape(namespace: str, interface: str, megabytes_per_s: float) -> None:
    _run("tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", "tbf", "rate", f"{megabytes_per_s * 8e6:.0f}bit",
         "burst", "256kb", "latency", "50ms")  # fmt: skip


def _remove(namespace: str) -> None:
    for pid in _run("ip", "netns", "pids", namespace).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _run("ip", "netns", "delete", namespace)


def _remove_those_of_the_dead() -> None:
    names: Sequence[str] = sorted(path.name for path in _NAMESPACES.iterdir()) if _NAMESPACES.is_dir() else ()
    for name in names:
        maker = name.removeprefix(PREFIX).partition("-")[0]
        if name.startswith(PREFIX) and maker.isdigit() and not Path(f"/proc/{maker}").exists():
            _remove(name)
