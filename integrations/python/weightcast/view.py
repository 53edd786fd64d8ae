"""weightcast-view: what people look at. A routing table and an update as pictures, the progress of updates on the terminal.

    weightcast explain --json *.catalog.json >plan.json && weightcast-view plan plan.json -o plan.png
    weightcast explain --json scenario.json >plan.json && weightcast-view routing plan.json -o routing.svg
    weightcast simulate --json scenario.json >simulation.json && weightcast-view gantt simulation.json -o gantt.png
    weightcast-view watch controller-status.jsonl

Exit codes: 0 done, 1 it failed, 2 wrong arguments or input.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from .output import standard_output, whole_file


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    codes = "Exit codes: 0 done, 1 it failed, 2 wrong arguments or input."
    parser = _OneLineParser("weightcast-view", description="Pictures and live progress of weight updates.", epilog=codes)
    commands = parser.add_subparsers(dest="command", required=True)
    table = "what `weightcast explain --json` or `weightcast plan --steps` printed"
    for name, what, source in (
        ("plan", "draws who sends how much to whom, as ribbons where ranks are few", table),
        ("routing", "draws the routing table: trainers against servers, totals on the margins", table),
        ("gantt", "draws when every rank does what", "what `weightcast simulate --json` printed"),
    ):
        picture = commands.add_parser(name, help=what, epilog=f"Example: weightcast-view {name} {name}.json -o {name}.png. {codes}")
        picture.add_argument("file", type=Path, help=source)
        picture.add_argument("-o", "--output", type=Path, help="the picture; .png, .svg and .pdf are known (default: beside "
                             "the file, .png)")  # fmt: skip
    watch = commands.add_parser("watch", help="shows the progress of updates until they are over",
                                epilog=f"Example: weightcast-view watch status.jsonl. {codes}")  # fmt: skip
    watch.add_argument("status", nargs="+", help="a file that grows by one JSON status a line; - is standard input")
    watch.add_argument("--wait-s", type=float, default=60, help="longest silence of a file (default: %(default)s)")
    return parser


def _draw(kind: str, file: Path, output: Path) -> int:
    from . import gantt, routes  # matplotlib takes a while to load

    if kind == "gantt":
        timeline = gantt.read_timeline(file)
        figure, said = gantt.draw(timeline), f"{timeline.trainers + timeline.servers} ranks, {len(timeline.spans)} spans"
    else:
        known = routes.read_routes(file)
        if not known.bytes:
            raise ValueError(f"{file}: in this plan nobody sends anything")
        figure = (routes.draw if kind == "plan" else routes.matrix)(known)
        said = f"{routes.size_text(known.total)} over {len(known.bytes)} pairs"
    with whole_file(output, "wb") as picture:
        figure.savefig(picture, dpi=150, format=output.suffix.removeprefix(".") or "png")
    print(f"{output} written: {said}")
    return 0


def _watch(names: Sequence[str], wait_s: float) -> int:
    from .progress import watch

    with contextlib.ExitStack() as stack:
        sources = {name: sys.stdin if name == "-" else stack.enter_context(open(name)) for name in names}
        return 0 if watch(sources, Console(), wait_s) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        with standard_output():
            if options.command == "watch":
                return _watch(options.status, options.wait_s)
            return _draw(options.command, options.file, options.output or options.file.with_suffix(".png"))
    except ValueError as error:
        code, text = 2, str(error)
    except OSError as error:  # also TimeoutError
        code, text = 1, str(error)
    except KeyboardInterrupt:
        return 130
    print(f"weightcast-view: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
