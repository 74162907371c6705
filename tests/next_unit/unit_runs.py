"""Tiny runs of paper U's training, on an autoencoder of random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_pipeline import AUTOENCODER

from videoar.next_unit.pipeline import UnitDefaults
from videoar.tokenizer.autoencoder import VideoAutoencoder
from videoar.training.clips import ClipsConfig
from videoar.training.optimizer import OptimizerConfig


def write_autoencoder(folder: Path) -> Path:
    """An autoencoder whose latents have the statistics that it promises."""
    torch.manual_seed(0)
    autoencoder = VideoAutoencoder(AUTOENCODER)
    autoencoder.calibrate([torch.rand(2, 3, 9, 32, 32) * 2 - 1])
    autoencoder.save_pretrained(folder)
    return folder


def tiny(autoencoder: Path, output: Path, **changes) -> dict:
    """Settings of six steps on clips of 3 x 4 x 4 latents, 3 x 2 x 2 tokens."""
    return {
        "output": str(output),
        "autoencoder": str(autoencoder),
        "preset": "tiny",
        "data": ClipsConfig(frames=13, size=64, wrap=True),
        "sampling": UnitDefaults(steps=2, method="euler", guidance=2.0),
        "optimizer": OptimizerConfig(warmup=2, weight_decay=0.05),
        "steps": 6,
        "batch": 4,
        "pool": 32,
        "log_every": 1,
        "evaluate_every": 0,
        "checkpoint_every": 2,
        **changes,
    }
