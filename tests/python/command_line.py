"""Runs the built command line: $WEIGHTCAST_CLI, or the one in $WEIGHTCAST_BUILD."""

import os
import pathlib
import subprocess

import pytest


def path() -> pathlib.Path:
    named = os.environ.get("WEIGHTCAST_CLI")
    build = os.environ.get("WEIGHTCAST_BUILD", pathlib.Path(__file__).parents[2] / "build/debug")
    program = pathlib.Path(named or pathlib.Path(build) / "plugin/weightcast")
    if not program.exists():
        pytest.fail(f"{program} is not built; ./dev test python builds it")
    return program


def weightcast(*arguments, check=True, **options) -> subprocess.CompletedProcess:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 30} | options
    result = subprocess.run([path(), *map(str, arguments)], **options)
    if check:
        assert result.returncode == 0, result.stderr
    return result
