"""The modules beside these tests, and those of tests/python, are imported by their names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
