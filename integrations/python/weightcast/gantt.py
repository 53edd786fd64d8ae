"""When every rank does what: read from the JSON of `weightcast simulate`, drawn as a picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .routes import size_text

# A rank's row is divided among the lanes of its side: (colour, from and to, of the row's height).
LANES = {
    "trainer": {"prepare": ("#e0a458", 0.55, 0.95), "send": ("#3a6ea5", 0.05, 0.52)},
    "server": {
        "take": ("#3a6ea5", 0.05, 0.52),
        "relay": ("#7fb069", 0.55, 0.95),
        "verify": ("#b56576", 0.05, 0.95),
        "commit": ("#2f2f2f", 0.05, 0.95),
    },
}
MOST_NAMED = 24  # ranks whose rows all have their name


@dataclass(frozen=True)
class Span:
    """What one rank does in one lane, in seconds from the push."""

    role: str
    rank: int
    lane: str
    begin_s: float
    end_s: float


@dataclass(frozen=True)
class Timeline:
    """A simulated update."""

    trainers: int
    servers: int
    bytes: int
    makespan_s: float
    bound_s: float | None
    binding: str
    spans: tuple[Span, ...]


def read_timeline(file: Path) -> Timeline:
    """ValueError, naming the file, if it is not the JSON of a simulation."""
    try:
        document = json.loads(file.read_text())
        spans = tuple(Span(*span) for span in document["spans"])
        for span in spans:
            _ = LANES[span.role][span.lane], span.end_s - span.begin_s
        return Timeline(document["trainers"], document["servers"], document["bytes"], document["makespan_s"],
                        document["bound_s"], document["binding"], spans)  # fmt: skip
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not text") from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{file} is not the JSON of `weightcast simulate`: {type(error).__name__} {error}") from None


def draw(timeline: Timeline) -> Figure:
    """A row for each rank, trainers first; time runs to the right."""
    rows = timeline.trainers + timeline.servers
    figure, axes = plt.subplots(figsize=(12, min(max(1.9 + 0.5 * rows, 3.2), 16 if rows > MOST_NAMED else 11)),
                                layout="constrained")  # fmt: skip
    unit, scale = ("ms", 1e3) if timeline.makespan_s < 1 else ("s", 1.0)
    for (role, lane), boxes in _boxes(timeline, scale).items():
        axes.add_collection(PolyCollection(boxes, facecolors=LANES[role][lane][0], linewidths=0))
    end = max([timeline.makespan_s, *(span.end_s for span in timeline.spans)]) * scale
    axes.set_xlim(0, 1.02 * end)
    axes.set_ylim(rows, 0)
    axes.axhline(timeline.trainers, color="0.3", linewidth=0.8)
    axes.set_xlabel(f"{unit} from the push")
    _name_rows(axes, timeline)
    marks = [Patch(color=color, label=lane) for lanes in LANES.values() for lane, (color, *_) in lanes.items()]
    _mark(axes, timeline.makespan_s * scale, f"verified everywhere, {timeline.makespan_s * scale:.4g} {unit}", "-", marks)
    if timeline.bound_s:
        _mark(axes, timeline.bound_s * scale, f"bound, {timeline.bound_s * scale:.4g} {unit}", "--", marks)
    figure.legend(handles=marks, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    axes.set_title(f"{timeline.trainers} trainers to {timeline.servers} servers, {size_text(timeline.bytes)}: simulated\n"
                   f"binding: {timeline.binding}", fontsize=11)  # fmt: skip
    return figure


def _boxes(timeline: Timeline, scale: float) -> dict[tuple[str, str], list]:
    """Corners of the rectangles by role and lane; each at least a hair wide, so that nothing short is lost."""
    boxes: dict[tuple[str, str], list] = {}
    hair = timeline.makespan_s * scale / 2000
    for span in timeline.spans:
        row = span.rank + (timeline.trainers if span.role == "server" else 0)
        _, low, high = LANES[span.role][span.lane]
        begin, end = span.begin_s * scale, max(span.end_s * scale, span.begin_s * scale + hair)
        boxes.setdefault((span.role, span.lane), []).append(
            [(begin, row + low), (end, row + low), (end, row + high), (begin, row + high)])  # fmt: skip
    return boxes


def _name_rows(axes: Axes, timeline: Timeline) -> None:
    rows = timeline.trainers + timeline.servers
    every = max(1, -(-rows // MOST_NAMED))
    names = {rank + 0.5: f"trainer {rank}" for rank in range(0, timeline.trainers, every)}
    names |= {timeline.trainers + rank + 0.5: f"server {rank}" for rank in range(0, timeline.servers, every)}
    axes.set_yticks(list(names), list(names.values()), fontsize=8)


def _mark(axes: Axes, at: float, label: str, style: str, marks: list) -> None:
    marks.append(axes.axvline(at, color="#c1121f", linestyle=style, linewidth=1.2, label=label))
