"""What `meson install`, and with it the wheel, lays side by side is complete: its programs find each other there."""

import subprocess

import command_line
import pytest

MEASUREMENTS = ["cast", "commit", "fabric", "pipeline", "plan", "put", "quant", "relay"]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder with the program, the shared objects and the measurements, away from the build."""
    root = tmp_path_factory.mktemp("installed")
    build = command_line.path().parents[1]
    install = ["meson", "install", "-C", build, "--no-rebuild", "--quiet", "--destdir", root]
    subprocess.run(install, check=True, capture_output=True, timeout=30)
    return next(root.rglob("libweightcast.so")).parent


def run(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


def test_the_installed_files_lie_in_one_folder(package):
    expected = {*(f"{name}_bench" for name in MEASUREMENTS), "libweightcast.so", "libweightcast_ucx.so", "weightcast"}
    assert {file.name for file in package.iterdir()} == expected


def test_installed_measurements_are_found_by_the_command_and_run(package, tmp_path):
    assert run(package / "weightcast", "bench").split() == MEASUREMENTS
    figures = tmp_path / "figures.json"
    said = run(package / "weightcast", "bench", "fabric", "--total-mib", "8", "--rounds", "1", "--json", figures)
    assert "fabric, tcp" in said and figures.exists()
