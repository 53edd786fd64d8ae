"""weightcast-view: what people look at. A routing table as a picture, the progress of updates on the terminal.

    weightcast explain --json *.catalog.json >plan.json && weightcast-view plan plan.json -o plan.png
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
    plan = commands.add_parser("plan", help="draws who sends how much to whom",
                               epilog=f"Example: weightcast-view plan plan.json -o plan.png. {codes}")  # fmt: skip
    plan.add_argument("plan", type=Path, help="what `weightcast plan --json` or `weightcast explain --json` printed")
    plan.add_argument("-o", "--output", type=Path, required=True, help="the picture; .png, .svg and .pdf are known")
    watch = commands.add_parser("watch", help="shows the progress of updates until they are over",
                                epilog=f"Example: weightcast-view watch status.jsonl. {codes}")  # fmt: skip
    watch.add_argument("status", nargs="+", help="a file that grows by one JSON status a line; - is standard input")
    watch.add_argument("--wait-s", type=float, default=60, help="longest silence of a file (default: %(default)s)")
    return parser


def _draw_plan(file: Path, output: Path) -> int:
    from . import routes  # matplotlib takes a while to load

    known = routes.read_routes(file)
    if not known.bytes:
        raise ValueError(f"{file}: in this plan nobody sends anything")
    with whole_file(output, "wb") as picture:
        routes.draw(known).savefig(picture, dpi=150, format=output.suffix.removeprefix(".") or "png")
    print(f"{output} written: {routes.size_text(known.total)} over {len(known.bytes)} pairs")
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
            if options.command == "plan":
                return _draw_plan(options.plan, options.output)
            return _watch(options.status, options.wait_s)
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
