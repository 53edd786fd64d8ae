"""Prints the header folder and the libucp.so.0 of the wheel libucx-cu13, one per line, for meson.build."""

import importlib.util
import pathlib
import sys

spec = importlib.util.find_spec("libucx")
if spec is None:
    sys.exit(f"{sys.executable} has no package libucx.")
wheel = pathlib.Path(spec.submodule_search_locations[0])
headers, library = wheel / "include", wheel / "lib" / "libucp.so.0"
for needed in (headers / "ucp" / "api" / "ucp.h", library):
    if not needed.exists():
        sys.exit(f"the package libucx lacks {needed}.")
print(headers, library, sep="\n")
