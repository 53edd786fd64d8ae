"""How long generation stands still because of an update, beside what the same engine needs without weightcast, in one run."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import weightcast
from load import Load
from test_vllm_server import check_unharmed, under_load
from vllm_server import engine_python, environment, free_port
from weightcast.demo import model as demo_model
from world import HERE, World

ROUNDS = 3


class GlooTrainer:
    """The process that broadcasts weights A whenever it is told to."""

    def __init__(self, world: World) -> None:
        self._world, self._port = world, free_port()
        checkpoint = world.folders["A"] / demo_model.CHECKPOINT
        self._process = subprocess.Popen([str(engine_python()), str(HERE / "gloo_engine.py"), str(self._port), str(checkpoint)],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(world.config.parent))  # fmt: skip
        self._shapes = {name: values.shape for name, values in sorted(world.weights["A"].items())}

    def update(self) -> None:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._world.server.post("collective_rpc", {"method": "receive_by_gloo", "kwargs": {"port": self._port, "shapes": self._shapes}})
        assert self._process.stdout.readline() == "sent\n"

    def close(self) -> None:
        self._process.communicate(timeout=60)


def stall_s(load: Load, act: Callable[[], object]) -> float:
    """The longest wait for a token around `act`, less the usual one."""
    usual, began = load.usual_gap_s(time.monotonic()), time.monotonic()
    act()
    ended = time.monotonic()
    time.sleep(3 * usual)
    return load.longest_gap_s(began, ended) - usual


def test_the_stall_is_a_fifth_of_loading_again_and_of_gloo(world: World) -> None:
    if world.letter == "B":
        world.update()  # what the others load are weights A
    gloo = GlooTrainer(world)
    stalls: dict[str, list[float]] = {"weightcast": [], "reload_weights": [], "gloo": []}
    try:
        with under_load(world, clients=1, tokens=500, already=10) as load:
            gloo.update()  # connects
            world.server.post("collective_rpc", {"method": "reload_weights"})  # fills the page cache
            for _ in range(ROUNDS):
                stalls["reload_weights"].append(stall_s(load, lambda: world.server.post("collective_rpc", {"method": "reload_weights"})))
                stalls["gloo"].append(stall_s(load, gloo.update))
                stalls["weightcast"] += [stall_s(load, world.update), stall_s(load, world.update)]
            in_flight = load.requests
    finally:
        gloo.close()
    check_unharmed(in_flight)
    for how, found in stalls.items():
        print(f"{how:15} stall {', '.join(f'{stall * 1e3:.0f}' for stall in found)} ms")
    ours = sorted(stalls["weightcast"])[ROUNDS]
    assert 5 * ours < sorted(stalls["reload_weights"])[ROUNDS // 2]
    assert 5 * ours < sorted(stalls["gloo"])[ROUNDS // 2]
