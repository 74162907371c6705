"""A model on disk: a folder with `config.json` and `model.safetensors`, never half-written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def save_model_folder(
    folder: str | Path, config: Mapping, state: Mapping[str, Tensor], *, dtype: torch.dtype | None = None
) -> None:
    """Write a model folder beside its place, then move it there.

    Args:
        folder: the folder to create or replace.
        config: what `config.json` holds.
        state: the weights.
        dtype: store floating-point weights in this type; None keeps theirs.
    """
    tensors = {
        name: tensor.detach().to("cpu", dtype if dtype and tensor.is_floating_point() else None).contiguous().clone()
        for name, tensor in state.items()
    }
    with replaced_folder(folder) as fresh:
        write_json(fresh / "config.json", config)
        save_file(tensors, fresh / "model.safetensors")


@contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder` that takes its place if the block succeeds, and vanishes if not."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        yield fresh
        if folder.exists():
            os.replace(folder, Path(scratch) / "old")
        os.replace(fresh, folder)


def load_model_folder(folder: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """Read a model folder; the weights come back in float32.

    Raises:
        FileNotFoundError: if a part is missing.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"load_model_folder: {folder} has no {name}")
    state = load_file(folder / "model.safetensors")
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    return read_json(folder / "config.json"), state


def write_json(path: str | Path, value: Mapping) -> None:
    """Write a JSON file under a temporary name beside it, then move it to its place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def read_json(path: str | Path) -> dict:
    """What a JSON file holds."""
    return json.loads(Path(path).read_text())
