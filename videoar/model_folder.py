"""A model on disk: a folder with `config.json` and `model.safetensors`, never half-written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


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
        FileNotFoundError: if a part is missing. ValueError: if one is broken.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"load_model_folder: {folder} has no {name}")
    with broken_parts(folder):
        state = load_file(folder / "model.safetensors")
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    return read_json(folder / "config.json"), state


def load_model(folder: str | Path, model: Callable[[Any], Model], schema: Callable[..., Any]) -> Model:
    """A model of a folder that `save_model_folder` wrote, in float32 and evaluation mode.

    Args:
        folder: of the model.
        model: makes one from its config.
        schema: makes the config from what `config.json` holds.

    Raises:
        FileNotFoundError: if a part is missing. ValueError: if one is broken, or of another kind of model.
    """
    config, state = load_model_folder(folder)
    with broken_parts(folder):
        found = model(schema(**config))
        found.load_state_dict(state)
    return found.eval()


@contextmanager
def broken_parts(folder: str | Path) -> Iterator[None]:
    """Turns what libraries raise about the parts of a model into a ValueError of one line that names the folder."""
    try:
        yield
    except (SafetensorError, RuntimeError, TypeError, KeyError) as error:
        said = " ".join(str(error).split())
        said = said if len(said) < 300 else f"{said[:300]}..."
        raise ValueError(f"{folder}: expected the parts of a model, got {type(error).__name__}: {said}") from error


def write_json(path: str | Path, value: Mapping) -> None:
    """Write a JSON file under a temporary name beside it, then move it to its place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def read_json(path: str | Path) -> dict:
    """What a JSON file holds.

    Raises:
        ValueError: it is none; the message names it.
    """
    try:
        return json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
