"""The rules of this repository about its own text. Pure functions: each takes files and returns complaints.

A file is given by its path from the root, with forward slashes, and its text.
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

# What each layer may include of ours, as prefixes; the longest key that begins a path is its layer.
LAYERS = {
    "transport/base/": ("transport/base/",),
    "transport/": ("transport/",),
    "quant/": ("transport/base/", "transport/memory.h", "transport/cuda", "quant/"),
    "schedule/": ("transport/base/", "transport/memory.h", "quant/", "schedule/"),
    "plugin/": ("transport/", "quant/", "schedule/", "plugin/"),
    "integrations/": ("plugin/weightcast.h", "integrations/"),
    "tests/": ("transport/", "quant/", "schedule/", "plugin/", "integrations/", "bench/", "tests/"),
    "bench/": ("transport/", "quant/", "schedule/", "plugin/", "integrations/", "bench/", "tests/support/"),
}
# Who may include what of others: include prefix -> pattern of the files that may. What is not here is free.
THIRD_PARTY = {
    "ucp/": r"transport/ucx/|tests/|bench/",
    "ucs/": r"transport/ucx/|tests/|bench/",
    "uct/": r"transport/ucx/|tests/|bench/",
    "zmq": r"transport/([^/]*\.cpp|zeromq\.h)$|tests/|bench/",
    "nlohmann/": r"(schedule|plugin)/.*\.cpp$|schedule/place\.h$|tests/|bench/",
    "nlohmann/json_fwd.hpp": r"(schedule|plugin)/|tests/|bench/",
    "CLI/": r"plugin/.*\.cpp$|plugin/cli/|tests/|bench/",
    "lemon/": r"schedule/.*\.cpp$|tests/|bench/",
    "cuda": r"transport/cuda|quant/kernels/|tests/|bench/",
    "doctest/": r"tests/",
}
# Headers that carry other people's headers: for the sources of their own folder and for each other.
PRIVATE_HEADERS = ("schedule/place.h", "transport/doorman.h", "transport/zeromq.h")
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include\s*(["<])([^">]+)[">]', re.MULTILINE)
VAGUE_NAMES = ("util", "manager", "helper", "data", "misc", "common")
# Written apart, so that this file does not accuse itself.
MACHINE_PATHS = re.compile(r"(?<![\w.@}-])/(" + "|".join(("ro" + "ot", "wo" + "rk", "ho" + "me/[a-z]+", "tmp/" + "h")) + r")(?=/|\b)")


def layer_of(path: str) -> str | None:
    fitting = [prefix for prefix in LAYERS if path.startswith(prefix)]
    return max(fitting, key=len, default=None)


def line_of(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


def layering(files: Mapping[str, str]) -> list[str]:
    """Includes only leftwards, from the root; other people's headers only where they belong."""
    complaints = []
    for path, text in files.items():
        layer = layer_of(path)
        if layer is None:
            complaints.append(f"{path}: belongs to no layer; folders are {', '.join(LAYERS)}")
            continue
        for found in INCLUDE.finditer(text):
            where, (quote, included) = f"{path}:{line_of(text, found.start())}", found.groups()
            if quote == '"' and not included.startswith(LAYERS[layer]):
                allowed = ", ".join(LAYERS[layer])
                complaints.append(f'{where}: {layer} may not include "{included}"; from the root, it may: {allowed}')
            own = path.endswith(".cpp") or path in PRIVATE_HEADERS
            if included in PRIVATE_HEADERS and not (own and PurePosixPath(path).parent == PurePosixPath(included).parent):
                complaints.append(f"{where}: {included} is for the sources of its own folder")
            if quote == "<":
                known = max((p for p in THIRD_PARTY if included.startswith(p)), key=len, default=None)
                if known and not re.match(THIRD_PARTY[known], path):
                    complaints.append(f"{where}: <{included}> belongs only into {THIRD_PARTY[known]}")
        if path.endswith(".h") and "#pragma once" not in text and path != "plugin/weightcast.h":
            complaints.append(f"{path}: no #pragma once")
    return complaints


def names(paths: list[str]) -> list[str]:
    """No file and no folder is called after nothing in particular."""
    complaints = []
    for path in paths:
        for part in PurePosixPath(path).parts:
            words = re.split(r"[^a-z]+", part.lower())
            vague = [w for w in words if w in VAGUE_NAMES or w.removesuffix("s") in VAGUE_NAMES]
            complaints += [f"{path}: the name says nothing: {word}" for word in vague]
    return complaints


def machine_paths(files: Mapping[str, str]) -> list[str]:
    """No text names a folder of somebody's machine."""
    return [
        f"{path}:{line_of(text, found.start())}: names a folder of one machine: {found.group(0)}"
        for path, text in files.items()
        for found in MACHINE_PATHS.finditer(text)
    ]
