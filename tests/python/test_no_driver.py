"""The libraries on a machine without a CUDA driver: they load there, and CUDA memory is refused in words."""

import ctypes
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fault_cluster import configuration
from weightcast import Shard, Unavailable, abi, trainer_catalog

BUILD = Path(os.environ.get("WEIGHTCAST_BUILD", Path(__file__).parents[2] / "build/debug"))


@pytest.mark.parametrize("library", ["plugin/libweightcast.so", "transport/ucx/libweightcast_ucx.so"])
def test_no_library_needs_a_driver_to_be_loaded(library):
    dynamic = subprocess.run(["readelf", "--dynamic", "--wide", BUILD / library], check=True, capture_output=True, text=True).stdout
    needed = [line.rpartition("[")[2].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line]
    assert "libc.so.6" in needed, dynamic
    assert [name for name in needed if name.startswith(("libcuda", "libcudart", "libnvidia", "libnvrtc"))] == []


def has_driver() -> bool:
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


@pytest.mark.skipif(has_driver(), reason="this machine has a CUDA driver")
def test_weights_in_cuda_memory_are_refused_by_name_of_what_is_missing(tmp_path):
    config = configuration(tmp_path, trainers=1, replicas=1, controller={"embedded": True})
    catalog = trainer_catalog(0, {"a": Shard(np.zeros((8, 4), np.uint16), (8, 4), (0, 0))})
    catalog["regions"][0]["kind"] = "cuda"
    handle = ctypes.c_void_p()
    text = abi.config_text(config, rank=0)
    with pytest.raises(Unavailable, match="CUDA memory needs a CUDA driver: libcuda.so.1 is missing"):
        try:
            abi.check(abi.api().trainer_open(text, json.dumps(catalog).encode(), ctypes.byref(handle)))
            abi.until(6, lambda wait_ms: abi.api().trainer_wait_connected(handle, wait_ms))
        finally:
            abi.api().trainer_close(handle)
