"""A model folder: `config.json` and `model.safetensors`, written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Config = TypeVar("Config")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name beside it, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write tensors as safetensors, atomically; floating point ones in `dtype` if one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    plain = {
        name: (x.to(dtype) if dtype and x.is_floating_point() else x).detach().cpu().contiguous().clone()
        for name, x in tensors.items()
    }
    try:
        save_file(plain, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_folder(
    folder: str | Path, config: object, tensors: dict[str, Tensor], *, dtype: torch.dtype | None = None
) -> None:
    """Write a model folder.

    Args:
        folder: created if missing.
        config: a dataclass.
        tensors: the model's state dict.
        dtype: what floating point weights are stored in; as they are if None.
    """
    folder = Path(folder)
    save_tensors(folder / "model.safetensors", tensors, dtype)
    write_atomically(folder / "config.json", (json.dumps(dataclasses.asdict(config), indent=2) + "\n").encode())


def load_folder(folder: str | Path, schema: type[Config]) -> tuple[Config, dict[str, Tensor]]:
    """Read a model folder: its config and its weights, floating point ones in float32.

    Raises:
        FileNotFoundError: a file is missing; the message names it.
        ValueError: the config is not one of `schema`.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"from_pretrained: expected {name} in {folder}")
    values = json.loads((folder / "config.json").read_text())
    unknown = set(values) - {field.name for field in dataclasses.fields(schema)}
    if unknown:
        raise ValueError(f"from_pretrained: {folder / 'config.json'} has unknown keys {sorted(unknown)}")
    tensors = load_file(folder / "model.safetensors")
    return schema(**values), {n: x.float() if x.is_floating_point() else x for n, x in tensors.items()}
