"""weightcast on a Ray cluster: the controller is a named actor, and trainers and servers find it by that name.

    import weightcast.ray
    weightcast.ray.start("weightcast.json")              # once, by the driver
    trainer = weightcast.Trainer(weightcast.ray.config(), rank, tensors)      # in any actor or task

The actor restarts by itself, at the same address, and ranks join it again: an update that was under way is given up or,
where a server was told to switch, finished.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from . import abi
from .controller import Controller

NAME = "weightcast"


class _ControllerActor:
    def __init__(self, document: dict[str, Any], secret: str) -> None:
        self._document, self._secret = document, secret
        self._controller = Controller(_with_secret(document, secret))

    def shared(self) -> tuple[dict[str, Any], str]:
        return self._document, self._secret

    def status(self) -> dict[str, Any]:
        return self._controller.status()


def start(config: abi.Config, name: str = NAME) -> RayController:
    """Starts the controller on this node; its port is the configuration's, or a free one if that is 0.

    The configuration's secret is read here and reaches the other nodes through Ray.
    """
    document = dict(config) if isinstance(config, Mapping) else json.loads(Path(config).read_text())
    host = ray.util.get_node_ip_address()
    port = int(document.get("controller", {}).get("address", "tcp://*:0").rpartition(":")[2]) or _free_port(host)
    document["controller"] = document.get("controller", {}) | {"address": f"tcp://{host}:{port}", "embedded": False}
    secret = Path(document.get("secret_file", "weightcast.secret")).read_text()
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(_ControllerActor).options(name=name, num_cpus=0, max_restarts=-1, max_task_retries=-1, lifetime="detached",
                                                 scheduling_strategy=here).remote(document, secret)  # fmt: skip
    ray.get(actor.shared.remote())  # raises why it did not start
    return RayController(actor)


def config(name: str = NAME) -> dict[str, Any]:
    """The configuration for a trainer or server in this process, with its secret in a file that only this user can read."""
    return _with_secret(*ray.get(ray.get_actor(name).shared.remote()))


def controller(name: str = NAME) -> RayController:
    """For `weightcast.vllm.Client(..., controller=...)`, and to look at the state of updates."""
    return RayController(ray.get_actor(name))


class RayController:
    """The controller, seen from another process."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def status(self) -> dict[str, Any]:
        return ray.get(self._actor.status.remote())

    def kill(self, restart: bool = False) -> None:
        """Ends the actor; with `restart`, Ray starts it again."""
        ray.kill(self._actor, no_restart=not restart)


def _with_secret(document: dict[str, Any], secret: str) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="weightcast-"))
    path = folder / "secret"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(secret)
    return document | {"secret_file": str(path)}


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
