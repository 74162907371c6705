"""Which model a command works with: a folder of either paper, or one that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from videoar.cli.errors import console
from videoar.cli.options import Precision

if TYPE_CHECKING:
    from videoar.next_scale.pipeline import VideoPipeline
    from videoar.next_unit.pipeline import UnitPipeline


def holds_units(folder: Path) -> bool:
    """Whether a model folder is paper U's, which alone has an autoencoder."""
    return (folder / "autoencoder").is_dir()


def load_pipeline(folder: Path) -> VideoPipeline | UnitPipeline:
    """The pipeline of a folder of either paper."""
    from videoar.next_scale.pipeline import VideoPipeline
    from videoar.next_unit.pipeline import UnitPipeline

    return (UnitPipeline if holds_units(folder) else VideoPipeline).from_pretrained(folder)


def load_units(model: Path | None, threads: int | None = None) -> tuple[UnitPipeline, Path]:
    """Paper U's pipeline of a folder or the shipped one, and the folder."""
    import torch

    from videoar.next_unit.pipeline import UnitPipeline
    from videoar.next_unit.shipped import shipped_units

    folder = model or shipped_units()
    if folder is None:
        raise ValueError("expected --model, because this installation ships no model of next-unit prediction")
    if threads is not None:
        torch.set_num_threads(threads)
    return UnitPipeline.from_pretrained(folder), folder


def prepare(pipeline: VideoPipeline | UnitPipeline, precision: Precision | None, *prompts: str) -> None:
    """Packs the transformer where a precision is asked for, and tells the words that the model does not know."""
    if precision is not None:
        pipeline.pack(precision.dtype)
    unknown = getattr(pipeline.conditioner, "unknown", lambda _: [])
    if words := [word for prompt in prompts for word in unknown(prompt)]:
        console.print(f"[yellow]the model does not know:[/yellow] {', '.join(words)}", highlight=False)
