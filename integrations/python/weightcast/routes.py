"""Who sends how much to whom: read from the JSON of `weightcast explain` or `weightcast plan --steps`, drawn as a picture."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as File

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

VALUE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "nvfp4_e2m1_1x16": 0.5}  # others: 1
SCALE_BYTES = {"mxfp8_e4m3_1x32": 1, "nvfp4_e2m1_1x16": 1}  # others: 4
MOST_RIBBONS = 12  # ranks on a side; more are drawn as a heat map
GAP = 0.03  # between neighbours on a side, of the whole height
BAR = 0.035


@dataclass(frozen=True)
class Routes:
    """Bytes for each (trainer, server); replicas by server, where they are known; what bounds the time, if known."""

    bytes: dict[tuple[int, int], int]
    trainers: int
    servers: int
    replicas: dict[int, int]
    bound: str = ""

    @property
    def total(self) -> int:
        return sum(self.bytes.values())

    def out_of(self, trainer: int) -> int:
        return sum(self.bytes.get((trainer, server), 0) for server in range(self.servers))

    def into(self, server: int) -> int:
        return sum(self.bytes.get((trainer, server), 0) for trainer in range(self.trainers))


def size_text(bytes_: float) -> str:
    """Decimal units, as the command line prints them: 17.3 MB."""
    for least, unit, name, digits in ((999.95e6, 1e9, "GB", 2), (999.95e3, 1e6, "MB", 1), (1e3, 1e3, "kB", 1)):
        if bytes_ >= least:
            return f"{bytes_ / unit:.{digits}f} {name}"
    return f"{bytes_:.0f} B"


def read_routes(file: File) -> Routes:
    """ValueError, naming the file, if it is not the JSON of a plan or of its explanation."""
    try:
        document = json.loads(file.read_text())
        return _of_table(document) if "pairs" in document else _of_plan(document)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not text") from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{file} is not the JSON of `weightcast explain` or `weightcast plan --steps`: "
                         f"{type(error).__name__} {error}") from None  # fmt: skip


def _of_table(table: dict) -> Routes:
    bound = table["bound"]
    return Routes(
        {(pair["trainer"], pair["server"]): pair["bytes"] for pair in table["pairs"]},
        table["trainers"],
        table["servers"],
        {pair["server"]: pair["replica"] for pair in table["pairs"]},
        f"no less than {bound['seconds'] * 1e3:.2f} ms, set by {bound['set_by']}" if bound else "",
    )


def _of_plan(plan: dict) -> Routes:
    count: Counter[tuple[int, int]] = Counter()
    for kind, box, bytes_of, others in (("steps", "box", VALUE_BYTES, 1), ("scale_steps", "blocks", SCALE_BYTES, 4)):
        for step in plan[kind]:
            bytes_ = step["count"] * bytes_of.get(step["recipe"], others)
            for begin, end in re.findall(r"(\d+):(\d+)", step[box]):
                bytes_ *= int(end) - int(begin)
            for destination in step["destinations"]:
                if "relay" not in destination:  # else another server puts it there
                    count[step["trainer"], destination["server"]] += int(bytes_)
    return Routes(dict(count), len(plan["trainer_bytes"]), len(plan["server_bytes"]), {})


def draw(routes: Routes) -> Figure:
    """Ribbons as wide as their bytes; a matrix when there are too many ranks for that."""
    if max(routes.trainers, routes.servers) <= MOST_RIBBONS:
        return _ribbons(routes)
    return matrix(routes)


def _summary(routes: Routes) -> str:
    replicas = len(set(routes.replicas.values()))
    inside = f" in {replicas} replica{'s' * (replicas != 1)}" if replicas else ""
    return (f"{routes.trainers} trainer{'s' * (routes.trainers != 1)} to "
            f"{routes.servers} server{'s' * (routes.servers != 1)}{inside}: {size_text(routes.total)}")  # fmt: skip


def _title(axes: Axes, routes: Routes) -> None:
    axes.set_title(_summary(routes), fontsize=13, pad=14)
    if routes.bound:
        axes.text(0.5, -0.04, f"bound: {routes.bound}", transform=axes.transAxes, ha="center", fontsize=9, color="0.35")


def _stack(sizes: Sequence[int], total: int) -> list[tuple[float, float]]:
    """Top and height of each bar, from the top of the picture (1) down; both sides are equally high."""
    free = 1 - GAP * (len(sizes) - 1)
    tops, top = [], 1.0
    for size in sizes:
        tops.append((top, free * size / max(total, 1)))
        top -= tops[-1][1] + GAP
    return tops


def _ribbons(routes: Routes) -> Figure:
    ranks = max(routes.trainers, routes.servers)
    figure, axes = plt.subplots(figsize=(9, 3.2 + 0.55 * ranks))
    axes.set_xlim(-0.36, 1.36)
    axes.set_ylim(-0.02, 1.02)
    axes.axis("off")
    _title(axes, routes)
    left = _stack([routes.out_of(t) for t in range(routes.trainers)], routes.total)
    right = _stack([routes.into(s) for s in range(routes.servers)], routes.total)
    colors = [plt.get_cmap("tab10" if routes.trainers <= 10 else "tab20")(t) for t in range(routes.trainers)]

    for t, (top, height) in enumerate(left):
        axes.add_patch(Rectangle((-BAR, top - height), BAR, height, color=colors[t]))
        _label(axes, -BAR - 0.02, top - height / 2, f"trainer {t}", size_text(routes.out_of(t)), "right")
    for s, (top, height) in enumerate(right):
        axes.add_patch(Rectangle((1, top - height), BAR, height, color="0.35"))
        replica = f" (replica {routes.replicas[s]})" if s in routes.replicas else ""
        _label(axes, 1 + BAR + 0.02, top - height / 2, f"server {s}{replica}", size_text(routes.into(s)), "left")

    from_top, to_top = [top for top, _ in left], [top for top, _ in right]
    for (t, s), count in sorted(routes.bytes.items()):
        start = left[t][1] * count / max(routes.out_of(t), 1)
        end = right[s][1] * count / max(routes.into(s), 1)
        axes.add_patch(_ribbon(from_top[t], start, to_top[s], end, colors[t]))
        from_top[t] -= start
        to_top[s] -= end
    figure.tight_layout()
    return figure


def _label(axes: Axes, x: float, y: float, name: str, size: str, side: str) -> None:
    axes.annotate(name, (x, y), (0, 6), textcoords="offset points", ha=side, va="center", fontsize=10)
    axes.annotate(size, (x, y), (0, -7), textcoords="offset points", ha=side, va="center", fontsize=9, color="0.35")


def _ribbon(left: float, left_height: float, right: float, right_height: float, color) -> PathPatch:
    """A band between two bars, bent so that it leaves and arrives level."""
    points = [
        (0, left), (0.5, left), (0.5, right), (1, right),
        (1, right - right_height), (0.5, right - right_height), (0.5, left - left_height), (0, left - left_height),
        (0, left),
    ]  # fmt: skip
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    return PathPatch(Path(points, codes), facecolor=color, alpha=0.45, edgecolor="white", linewidth=0.6)


def matrix(routes: Routes) -> Figure:
    """Trainers against servers: a cell for each pair, its bytes as colour, and as text where it can be read; what each
    rank sends or takes in all is on the margins."""
    megabytes = [[routes.bytes.get((t, s), 0) / 1e6 for s in range(routes.servers)] for t in range(routes.trainers)]
    # Half an inch for each rank where cells have text, less where they are many, within what a page shows.
    width, height = (min(max(0.62 * n if n <= MOST_RIBBONS else n / 9, 2.6), 13) for n in (routes.servers, routes.trainers))
    figure, grid = plt.subplots(
        2, 3, figsize=(width + 3.4, height + 2.4), layout="constrained",
        width_ratios=[width, 1.3, 0.22], height_ratios=[1.0, height])  # fmt: skip
    (above, corner, no_bar), (axes, beside, bar) = grid
    for unused in (corner, no_bar):
        unused.axis("off")
    image = axes.imshow(megabytes, cmap="Blues", vmin=0, aspect="auto", interpolation="nearest")
    figure.colorbar(image, cax=bar, label="MB from a trainer to a server")
    axes.set_xlabel("server")
    axes.set_ylabel("trainer")
    for axis, count in ((axes.xaxis, routes.servers), (axes.yaxis, routes.trainers)):
        axis.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=min(count, 16), integer=True))
    # Lines between replicas, where neighbouring servers belong to two.
    for server in range(1, routes.servers):
        if routes.replicas.get(server) != routes.replicas.get(server - 1):
            axes.axvline(server - 0.5, color="0.5", linewidth=0.8)
    if max(routes.trainers, routes.servers) <= MOST_RIBBONS:
        _write_cells(axes, routes)
    _margin(above, [routes.into(s) for s in range(routes.servers)], axes, upright=True)
    _margin(beside, [routes.out_of(t) for t in range(routes.trainers)], axes, upright=False)
    figure.suptitle(_summary(routes), fontsize=13)
    if routes.bound:
        figure.supxlabel(f"bound: {routes.bound}", fontsize=9, color="0.35")
    return figure


def _write_cells(axes: Axes, routes: Routes) -> None:
    most = max(routes.bytes.values())
    for (t, s), count in routes.bytes.items():
        axes.text(s, t, size_text(count).replace(" ", "\n"), ha="center", va="center", fontsize=8,
                  color="white" if count > 0.6 * most else "0.2")  # fmt: skip


def _margin(axes: Axes, totals: Sequence[int], cells: Axes, *, upright: bool) -> None:
    """Totals of one side as bars along its cells, named where there is room."""
    gigabytes, ranks = [total / 1e9 for total in totals], range(len(totals))
    if upright:
        axes.bar(ranks, gigabytes, width=0.9, color="0.55")
        axes.sharex(cells)
        axes.tick_params(labelbottom=False, labelsize=8)
        axes.set_ylabel("GB taken", fontsize=8)
    else:
        axes.barh(ranks, gigabytes, height=0.9, color="0.55")
        axes.sharey(cells)
        axes.tick_params(labelleft=False, labelsize=8)
        axes.set_xlabel("GB sent", fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(totals) > MOST_RIBBONS:
        return
    (axes.set_ylim if upright else axes.set_xlim)(0, 1.35 * max(gigabytes))
    for rank, total in enumerate(totals):
        at = (rank, total / 1e9) if upright else (total / 1e9, rank)
        axes.annotate(size_text(total), at, (0, 2) if upright else (3, 0), textcoords="offset points", fontsize=7,
                      ha="center" if upright else "left", va="bottom" if upright else "center")  # fmt: skip
