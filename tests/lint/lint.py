"""lint.py RULE ROOT [COMPILER ARGUMENT...]: checks this repository's text.

RULE is layering, names, paths, headers, format or tidy (ROOT, then for tidy the build folder, for headers the
compiler and its arguments). Exit code 0: fine, 1: complaints are printed, 77: the tool it needs is not installed.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import rules

SKIPPED = 77
CLANG_VERSION = "14."  # other versions lay code out differently
NOT_OURS = {"build", "__pycache__", "dist"}


def paths(root: pathlib.Path) -> list[str]:
    """Every file of ours, from the root. Dot folders but .ci hold what others made."""
    found = []
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(d for d in inner if d not in NOT_OURS and (not d.startswith(".") or d == ".ci"))
        found += [(pathlib.Path(folder) / f).relative_to(root).as_posix() for f in sorted(files) if f != ".git"]
    return found


def sources(root: pathlib.Path, *suffixes: str) -> list[str]:
    return [p for p in paths(root) if p.endswith(suffixes)]


def texts(root: pathlib.Path, selected: list[str]) -> dict[str, str]:
    found = {}
    for path in selected:
        try:
            found[path] = (root / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # golden files and corpora may be binary
    return found


def in_parallel(commands: dict[str, list[str]], root: pathlib.Path, inputs: dict[str, str] | None = None) -> list[str]:
    """The output of every command that failed."""

    def run(name: str) -> str:
        given = (inputs or {}).get(name)
        done = subprocess.run(commands[name], cwd=root, input=given, capture_output=True, text=True)
        return "" if done.returncode == 0 else (done.stdout + done.stderr).strip() or f"exit code {done.returncode}"

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return [f"{name}:\n{output}" for name, output in zip(commands, pool.map(run, commands)) if output]


def skip_without(tool: str) -> None:
    if shutil.which(tool) is None:
        print(f"{tool} is not installed")
        sys.exit(SKIPPED)


def layering(root: pathlib.Path) -> list[str]:
    return rules.layering(texts(root, sources(root, ".h", ".cpp", ".c", ".cu", ".cuh")))


def names(root: pathlib.Path) -> list[str]:
    return rules.names(paths(root))


def machine_paths(root: pathlib.Path) -> list[str]:
    return rules.machine_paths(texts(root, paths(root)))


def headers(root: pathlib.Path, *compiler: str) -> list[str]:
    """Each header compiles alone."""
    found = sources(root, ".h")
    commands = {h: [*compiler, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"] for h in found}
    return in_parallel(commands, root, {h: f'#include "{h}"\n' for h in found})


def layout(root: pathlib.Path) -> list[str]:
    skip_without("clang-format")
    version = subprocess.run(["clang-format", "--version"], capture_output=True, text=True).stdout
    if f"version {CLANG_VERSION}" not in version:
        print(f"the sources are laid out by clang-format {CLANG_VERSION}x, this is {version.strip()}")
        sys.exit(SKIPPED)
    files = sources(root, ".h", ".cpp", ".c", ".cu", ".cuh")
    return in_parallel({"./dev fmt repairs": ["clang-format", "--dry-run", "-Werror", *files]}, root)


def tidy(root: pathlib.Path, build: str) -> list[str]:
    """The code that people link; with WEIGHTCAST_LONG set, tests and benchmarks too."""
    skip_without("clang-tidy")
    units = json.loads((pathlib.Path(build) / "compile_commands.json").read_text())
    # In a unity build each unit includes its sources, so those are "headers" that count.
    ours = rf"{re.escape(str(root))}/(transport|quant|schedule|plugin|tests|bench)/.*\.(h|cpp)$"
    # Some flags of the build are GCC's alone.
    command = ["clang-tidy", "--quiet", "-p", build, f"--header-filter={ours}", "--extra-arg=-Wno-unknown-warning-option"]
    commands = {u["output"]: [*command, str(pathlib.Path(u["directory"]) / u["file"])]
                for u in units
                if u["file"].endswith(".cpp") and ("WEIGHTCAST_LONG" in os.environ or not u["output"].startswith(("tests/", "bench/")))}  # fmt: skip
    return [re.sub(r"\d+ warnings? generated\.\n?", "", c) for c in in_parallel(commands, root)]


CHECKS = {"layering": layering, "names": names, "paths": machine_paths, "headers": headers, "format": layout, "tidy": tidy}


def main() -> int:
    check, root = CHECKS[sys.argv[1]], pathlib.Path(sys.argv[2])
    complaints = check(root, *sys.argv[3:])
    print(*complaints, sep="\n")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
