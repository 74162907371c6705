"""Which model a command works with: a folder of either paper, or one that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from videoar.cli.errors import console, of_argument
from videoar.cli.options import Precision

if TYPE_CHECKING:
    from videoar.next_scale.pipeline import VideoPipeline
    from videoar.next_unit.pipeline import UnitPipeline


def holds_units(folder: Path) -> bool:
    """Whether a model folder is paper U's, which alone has an autoencoder."""
    return (folder / "autoencoder").is_dir()


def expect_model(folder: Path) -> None:
    """Raises ValueError for a folder without a model, before anything is read."""
    if not (folder / "sampling.json").is_file():
        raise ValueError(f"--model: expected a model's folder with a sampling.json, got {folder}")


def load_pipeline(folder: Path, argument: str = "--model") -> VideoPipeline | UnitPipeline:
    """The pipeline of a folder of either paper; errors name the argument."""
    from videoar.next_scale.pipeline import VideoPipeline
    from videoar.next_unit.pipeline import UnitPipeline

    with of_argument(argument):
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
    with of_argument("--model"):
        return UnitPipeline.from_pretrained(folder), folder


def prepare(pipeline: VideoPipeline | UnitPipeline, precision: Precision | None, *prompts: str) -> None:
    """Packs the transformer where a precision is asked for, and tells the words that the model does not know."""
    if precision is not None:
        pipeline.pack(precision.dtype)
    unknown = getattr(pipeline.conditioner, "unknown", lambda _: [])
    if words := [word for prompt in prompts for word in unknown(prompt)]:
        console.print(f"[yellow]the model does not know:[/yellow] {', '.join(words)}", highlight=False)
