"""The command line `weightcast` lies beside this file; the script that pip installs hands over to it.

`weightcast doctor vllm` is Python's affair, since it looks at Python packages.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    if sys.argv[1:3] == ["doctor", "vllm"]:
        from .vllm.doctor import main as doctor

        sys.exit(doctor(sys.argv[3:]))
    program = Path(__file__).parent / "weightcast"
    if not program.is_file():
        sys.exit(f"{program} is missing: reinstall weightcast")
    os.execv(program, [str(program), *sys.argv[1:]])
