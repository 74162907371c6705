"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Precision(StrEnum):
    """What a packed transformer computes in."""

    bf16 = "bf16"
    float32 = "float32"

    @property
    def dtype(self):
        import torch

        return torch.bfloat16 if self is Precision.bf16 else torch.float32


Model = Annotated[Path | None, typer.Option(help="Model folder; the shipped one if not given.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="File to write: .mp4 or .gif.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same video.")]
Packed = Annotated[
    Precision | None,
    typer.Option(help="Pack the transformer's weights for speed: bf16, or float32. As they are if not given."),
]
FrameRate = Annotated[float | None, typer.Option(help="Frame rate of the file; the model's if not given.")]

Steps = Annotated[int | None, typer.Option(min=1, help="Passes a unit before the clean one; the model's if not given.")]
Guidance = Annotated[float | None, typer.Option(help="Strength of the prompt; the model's if not given.")]
ContextNoise = Annotated[
    float | None, typer.Option(help="Level of noise at which later units see finished ones; the model's if not given.")
]
Units = Annotated[str | None, typer.Option(help='Units, such as "cube(2, 2, 2)"; the model\'s if not given.')]
Context = Annotated[
    int | None, typer.Option(min=0, help="Units before its own that a unit sees; the model's if not given.")
]
Sink = Annotated[int | None, typer.Option(min=0, help="First units that every unit sees besides.")]
History = Annotated[
    int | None, typer.Option(min=0, help="Units computed anew at another prompt; those of the context if not given.")
]

SampleSeed = Annotated[int, typer.Option(help="Of prompts and samples.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch; as they are set if not given.")]
Report = Annotated[Path | None, typer.Option(help="Also write the figures as JSON.")]
Sheet = Annotated[Path | None, typer.Option(help="Also draw 12 samples as PNG.")]
Plot = Annotated[Path | None, typer.Option(help="Also draw it as PNG; needs matplotlib.")]
