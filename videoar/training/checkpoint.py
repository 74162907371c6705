"""Training state on disk: complete folders only, so that a killed run resumes where its last one ends.

<output>/checkpoints/step-00001000/{model,average}.safetensors, optimizer.pt, progress.json
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from videoar.training.ema import WeightAverage


def save_checkpoint(
    output: str | Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    *,
    keep: int = 2,
    note: dict | None = None,
) -> Path:
    """Writes all that the next step depends on, under a temporary name first.

    Args:
        output: the run's folder.
        step: steps done.
        model, optimizer, average: the state.
        keep: how many checkpoints stay; older ones are removed.
        note: what else goes into progress.json.
    """
    folder = Path(output) / "checkpoints"
    final, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(
        {name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()}, temporary / "model.safetensors"
    )
    save_file(
        {name: x.cpu().contiguous() for name, x in average.state_dict().items()}, temporary / "average.safetensors"
    )
    torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
    (temporary / "progress.json").write_text(json.dumps({"step": step, **(note or {})}) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    for old in _complete(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest_checkpoint(output: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, if there is one."""
    found = _complete(Path(output) / "checkpoints")
    return found[-1] if found else None


def load_checkpoint(
    folder: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage
) -> dict:
    """Restores what `save_checkpoint` wrote and returns progress.json."""
    folder = Path(folder)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    average.load_state_dict(load_file(folder / "average.safetensors"))
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu"))
    return json.loads((folder / "progress.json").read_text())


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if (path / "progress.json").is_file())
