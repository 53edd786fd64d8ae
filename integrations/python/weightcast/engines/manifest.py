"""The names, shapes and element types of a checkpoint, without its bytes."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import torch

from .trace import TensorMeta

# The spellings of the safetensors format.
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn,
           "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
           "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip
_MOST_HEADER_BYTES = 1 << 28


def manifest_of(where: str | os.PathLike[str]) -> dict[str, TensorMeta]:
    """Of a folder with safetensors files, of one such file, or of a JSON file {name: {"shape", "dtype"}}.

    ValueError names the file that is missing or broken.
    """
    path = Path(where)
    if path.suffix == ".json":
        return {name: TensorMeta(tuple(item["shape"]), _dtype(item["dtype"], path)) for name, item in json.loads(path.read_text()).items()}
    files = [path] if path.is_file() else _files_in(path)
    manifest: dict[str, TensorMeta] = {}
    for file in files:
        for name, item in _header(file).items():
            manifest[name] = TensorMeta(tuple(item["shape"]), _dtype(item["dtype"], file))
    return manifest


def _files_in(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ValueError(f"{index} names {missing[0]}, which is not there")
        return [folder / name for name in names]
    if files := sorted(folder.glob("*.safetensors")):
        return files
    raise ValueError(f"{folder} has no safetensors file; name a manifest (JSON: tensor -> shape and dtype) instead")


def _header(file: Path) -> dict[str, dict]:
    with file.open("rb") as opened:
        start = opened.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= _MOST_HEADER_BYTES:
            raise ValueError(f"{file} is no safetensors file")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return header


def _dtype(name: str, file: Path) -> torch.dtype:
    if name in _DTYPES:
        return _DTYPES[name]
    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{file}: element type {name!r} is not known")
    return found
