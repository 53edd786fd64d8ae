"""exports_test.py NM LIBRARY SYMBOL: the library exports SYMBOL and nothing else."""

import subprocess
import sys

nm, library, expected = sys.argv[1:]
lines = subprocess.run([nm, "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout.splitlines()
exported = sorted(line.split()[-1].split("@")[0] for line in lines)
if exported != [expected]:
    sys.exit(f"{library} exports {exported}, it should export {expected} alone")
