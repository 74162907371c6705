"""`videoar evaluate units`: paper U's figures about a model on the sprites."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from videoar.cli.errors import console, readable_errors

Model = Annotated[Path | None, typer.Option(help="Model folder; the shipped one if not given.")]
Report = Annotated[Path | None, typer.Option(help="Also write the figures as JSON.")]
Steps = Annotated[int | None, typer.Option(help="Passes a unit before the clean one; the model's if not given.")]
Guidance = Annotated[float | None, typer.Option(help="Strength of the prompt; the model's if not given.")]
Units = Annotated[str | None, typer.Option(help='Units, such as "cube(2, 2, 2)"; the model\'s if not given.')]
Threads = Annotated[int | None, typer.Option(help="Threads of PyTorch; as they are set if not given.")]


def load_units(model: Path | None, threads: int | None = None):
    """The pipeline of a folder or the shipped one, and the folder."""
    import torch

    from videoar.next_unit.pipeline import UnitPipeline
    from videoar.next_unit.shipped import shipped_units

    folder = model or shipped_units()
    if folder is None:
        raise ValueError("expected --model, because this installation ships no model of next-unit prediction")
    if threads is not None:
        torch.set_num_threads(threads)
    return UnitPipeline.from_pretrained(folder), folder


def units(
    model: Model = None,
    prompts: Annotated[int, typer.Option(help="Held-out prompts to generate.")] = 256,
    steps: Steps = None,
    guidance: Guidance = None,
    units: Units = None,
    method: Annotated[str | None, typer.Option(help="renoise or euler; the model's if not given.")] = None,
    window: Annotated[int | None, typer.Option(help="Units before its own that a unit sees.")] = None,
    reference: Annotated[int, typer.Option(help="Real clips that the Frechet distance is to.")] = 1024,
    timed: Annotated[int, typer.Option(help="Clips generated one by one for the time.")] = 5,
    batch: Annotated[int, typer.Option(help="Clips at a time.")] = 32,
    seed: Annotated[int, typer.Option(help="Of prompts and samples.")] = 0,
    threads: Threads = None,
    name: Annotated[str | None, typer.Option(help="Of the row in a table; the units if not given.")] = None,
    report: Report = None,
    sheet: Annotated[Path | None, typer.Option(help="Also draw 12 samples as PNG.")] = None,
) -> None:
    """Prompt adherence with its control, Frechet distance with its floors, and seconds a clip."""
    from videoar.evaluation.adherence import generated, heldout_prompts
    from videoar.evaluation.sheet import contact_sheet
    from videoar.evaluation.unit_quality import unit_quality
    from videoar.evaluation.unit_table import unit_table
    from videoar.model_folder import write_json

    with readable_errors():
        pipeline, folder = load_units(model, threads)
        options = {"steps": steps, "guidance": guidance, "units": units, "method": method, "window": window}
        sizes = {"prompts": prompts, "batch": batch, "reference": reference, "timed": timed}
        with console.status("loading") as status:
            found = unit_quality(pipeline, seed=seed, progress=status.update, **sizes, **options)
        figures = {"name": name or found.units, "model": str(folder), "seed": seed, **found.to_dict()}
        typer.echo(unit_table([figures]))
        if report is not None:
            write_json(report, figures)
        if sheet is not None:
            captions = heldout_prompts(12, seed)
            contact_sheet(generated(pipeline, captions, seed=seed, **options), captions, sheet)
