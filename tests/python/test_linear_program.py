"""Without relay the bound is the optimum of a flow: here a linear program says what that is, from the catalogs alone."""

import collections
import json
import math
import pathlib
import random

import pytest
from command_line import weightcast

optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed; ./dev setup installs it")
SCENARIOS = pathlib.Path(__file__).parents[2] / "bench/scenarios"
ELEMENT_BYTES = {"bf16": 2, "fp32": 4, "fp8_e4m3_128x128_fp32": 1}


def box_of(entry):
    shape = entry["shape"]
    offset = entry.get("offset", [0] * len(shape))
    extent = entry.get("extent", [size - begin for size, begin in zip(shape, offset)])
    return tuple(offset), tuple(extent)


def common_elements(a, b):
    return math.prod(
        max(0, min(ao + ae, bo + be) - max(ao, bo)) for ao, ae, bo, be in zip(a[0], a[1], b[0], b[1])
    )


def stored_bytes(entry):
    """Of one value, or one scale."""
    return 4 if entry.get("is_scales") else ELEMENT_BYTES[entry["recipe"]]


def whole_blocks(a, b, shape):
    """Blocks of 128x128 of the tensor, the last ones ragged, that lie in both boxes: only who holds one sends its scale."""
    blocks = 1
    for axis, size in enumerate(shape):
        begin = max(a[0][axis], b[0][axis])
        end = min(a[0][axis] + a[1][axis], b[0][axis] + b[1][axis])
        blocks *= max(0, (-(-end // 128) if end == size else end // 128) - -(-begin // 128))
    return blocks


def loads_of(trainers, servers):
    """Bytes that exactly these trainers hold, each by itself: {trainers: bytes}. Who shares a block may send its scale."""
    shards = collections.defaultdict(lambda: collections.defaultdict(set))
    for rank, catalog in enumerate(trainers):
        for entry in catalog["entries"]:
            shards[entry["tensor"]][box_of(entry)].add(rank)
    loads = collections.Counter()
    for catalog in servers:
        for entry in catalog["entries"]:
            if entry.get("is_scales"):
                continue
            for box, holders in shards[entry["tensor"]].items():
                loads[frozenset(holders)] += common_elements(box, box_of(entry)) * ELEMENT_BYTES[entry["recipe"]]
                if entry["recipe"].startswith("fp8_e4m3_128x128"):
                    loads[frozenset(holders)] += 4 * whole_blocks(box, box_of(entry), entry["shape"])
    return loads


def least_seconds_out(loads, trainers, trainer_gbs):
    """min T where every load is shared out among its holders and no trainer sends longer than T."""
    total = sum(loads.values())  # loads are solved for as parts of it: solvers take tiny coefficients for zeros
    parts = [(holders, rank) for holders in loads for rank in sorted(holders)]
    share_out = [[float(holders == of) for of, _ in parts] + [0.0] for holders in loads]
    within = [[float(rank == of) for _, of in parts] + [-1.0] for rank in range(trainers)]
    found = optimize.linprog(
        [0.0] * len(parts) + [1.0], A_ub=within, b_ub=[0.0] * trainers, A_eq=share_out,
        b_eq=[load / total for load in loads.values()], method="highs",
    )  # fmt: skip
    assert found.success, found.message
    return found.fun * total / trainer_gbs / 1e9


def seconds_in(servers, server_gbs):
    taken = [sum(math.prod(box_of(e)[1]) * stored_bytes(e) for e in s["entries"]) for s in servers]
    return max(taken) / server_gbs / 1e9


def check(arguments, trainers, servers, trainer_gbs, server_gbs):
    least = max(
        least_seconds_out(loads_of(trainers, servers), len(trainers), trainer_gbs), seconds_in(servers, server_gbs)
    )
    rates = ("--no-relay", "--trainer-gbs", trainer_gbs, "--server-gbs", server_gbs)
    found = json.loads(weightcast("explain", "--json", *rates, *arguments).stdout)
    assert found["bound_s"] == pytest.approx(least, rel=2e-5)  # whole bytes
    assert least * (1 - 1e-9) <= found["makespan_s"] <= least * 1.02
    return least


@pytest.mark.parametrize("server_gbs", [50, 500])
@pytest.mark.parametrize("name", ["smollm2-135m_2to2", "demo_4to4"])
def test_the_bound_of_a_shipped_scenario_is_the_linear_programs(tmp_path, name, server_gbs):
    weightcast("catalogs", SCENARIOS / f"{name}.json", tmp_path)
    catalogs = [json.loads(file.read_text()) for file in tmp_path.glob("*.catalog.json")]
    trainers, servers = (
        sorted((c for c in catalogs if c["role"] == role), key=lambda c: c["rank"]) for role in ("trainer", "server")
    )
    check([SCENARIOS / f"{name}.json"], trainers, servers, 50, server_gbs)


class Ranks:
    """Catalogs of one role, one region a rank, entries one after the other."""

    def __init__(self, role, count):
        region = {"name": "memory", "bytes": 0, "kind": "host"}
        self.catalogs = [
            {"format": "weightcast.catalog/1", "role": role, "rank": rank, "regions": [dict(region)], "entries": []}
            for rank in range(count)
        ]

    def add(self, rank, tensor, shape, rows):
        region = self.catalogs[rank]["regions"][0]
        number_format = "dtype" if self.catalogs[rank]["role"] == "trainer" else "recipe"
        self.catalogs[rank]["entries"].append(
            {"tensor": tensor, "shape": shape, "offset": [rows[0], 0], "extent": [rows[1] - rows[0], shape[1]],
             number_format: "bf16", "region": "memory", "byte_offset": region["bytes"]}
        )  # fmt: skip
        region["bytes"] += (rows[1] - rows[0]) * shape[1] * 2


def random_world(seed):
    """Every part of a tensor is held by some trainers, whoever they are, and taken by some servers."""
    dice = random.Random(seed)
    trainers, servers = Ranks("trainer", dice.randint(2, 6)), Ranks("server", dice.randint(1, 4))

    def some(ranks):
        return dice.sample(range(len(ranks.catalogs)), dice.randint(1, len(ranks.catalogs)))

    for number in range(dice.randint(4, 12)):
        shape = [8 * dice.randint(8, 64), 8 * dice.randint(8, 32)]
        cut = 8 * dice.randint(1, shape[0] // 8 - 1)
        for rows in dice.choice([[(0, shape[0])], [(0, cut), (cut, shape[0])]]):
            for rank in range(len(trainers.catalogs)) if number == 0 else some(trainers):
                trainers.add(rank, f"tensor {number}", shape, rows)
        for rank in range(len(servers.catalogs)) if number == 0 else some(servers):
            rows = dice.choice([(0, shape[0]), (0, 8 * dice.randint(1, shape[0] // 8))])
            servers.add(rank, f"tensor {number}", shape, rows)
    return trainers.catalogs, servers.catalogs, dice.choice([20, 200])


def test_the_bound_of_thirty_random_worlds_is_the_linear_programs(tmp_path):
    bound_by_trainers = 0
    for seed in range(30):
        trainers, servers, server_gbs = random_world(seed)
        files = []
        for catalog in trainers + servers:
            files.append(tmp_path / f"{seed}.{catalog['role']}{catalog['rank']}.json")
            files[-1].write_text(json.dumps(catalog))
        least = check(files, trainers, servers, 10, server_gbs)
        bound_by_trainers += least > seconds_in(servers, server_gbs)
    assert 10 < bound_by_trainers <= 30  # else the flow decides nothing
