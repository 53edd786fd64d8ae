"""ray_cluster.py CONFIG: a local Ray cluster with two trainer and two server actors; the controller actor dies in between.

Each trainer holds half the rows of one BF16 tensor; each server is a replica that holds all of it. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np

os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # a busy machine
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray
import weightcast
import weightcast.ray
from weightcast.catalog import Parameter, Part

ROWS, COLUMNS, RANKS = 256, 512, 2


class Trainer:
    def __init__(self, rank: int) -> None:
        self.rows = np.zeros((ROWS // RANKS, COLUMNS), np.uint16)
        shard = weightcast.Shard(self.rows, (ROWS, COLUMNS), (rank * ROWS // RANKS, 0))
        self.trainer = weightcast.Trainer(weightcast.ray.config(), rank, {"w": shard})

    def update(self, version: int) -> dict:
        self.trainer.wait_connected(240)
        self.rows[:] = 0x3F80 + version
        self.trainer.push(version)
        return self.trainer.wait(version, 240)


class Server:
    def __init__(self, rank: int) -> None:
        self.array = np.zeros((ROWS, COLUMNS), np.uint16)
        part = Part("w", (ROWS, COLUMNS), (0, 0), (ROWS, COLUMNS), (0, 0))
        parameter = Parameter("w", (ROWS, COLUMNS), "bf16", (part,))
        self.server = weightcast.Server(weightcast.ray.config(), rank, rank, [parameter], {"w": self.array})

    def serve_until(self, version: int) -> list[int]:
        """The distinct values that are live once `version` is."""
        end = time.monotonic() + 240
        while self.server.state().committed_version < version:
            if time.monotonic() > end:
                raise TimeoutError(f"version {version} did not come; {self.server.status()}")
            self.server.commit_if_due()
            time.sleep(0.005)
        return sorted(set(self.array.ravel().tolist()))


def main() -> None:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False,
             runtime_env={"env_vars": {name: os.environ[name] for name in ("PYTHONPATH", "WEIGHTCAST_LIBRARY")}})  # fmt: skip
    controller = weightcast.ray.start(sys.argv[1])
    trainers = [ray.remote(Trainer).options(num_cpus=0).remote(rank) for rank in range(RANKS)]
    servers = [ray.remote(Server).options(num_cpus=0).remote(rank) for rank in range(RANKS)]
    said: dict = {"live": {}}

    def update(version: int) -> None:
        reports = [trainer.update.remote(version) for trainer in trainers]
        said["live"][version] = ray.get([server.serve_until.remote(version) for server in servers], timeout=300)
        said["replicas"] = ray.get(reports, timeout=300)[0]["replicas_committed"]

    update(1)
    before = controller.status()
    controller.kill(restart=True)
    end = time.monotonic() + 240
    while not all(member["connected"] for member in controller.status()["members"]) or len(controller.status()["members"]) < 2 * RANKS:
        if time.monotonic() > end:
            raise TimeoutError(f"the ranks did not come back: {controller.status()}")
        time.sleep(0.2)
    after = weightcast.ray.controller().status()
    said["address"] = [before["address"], after["address"]]
    update(2)
    controller.kill()
    ray.shutdown()
    print(json.dumps(said))


main()
