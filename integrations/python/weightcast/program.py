"""The command line `weightcast` lies beside this file; the script that pip installs hands over to it."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    program = Path(__file__).parent / "weightcast"
    if not program.is_file():
        sys.exit(f"{program} is missing: reinstall weightcast")
    os.execv(program, [str(program), *sys.argv[1:]])
