"""`videoar evaluate units | stream | switch`: paper U's figures about a model on the sprites."""

from __future__ import annotations

from typing import Annotated

import typer

from videoar.cli.errors import console, expect_file, readable_errors
from videoar.cli.models import load_units
from videoar.cli.options import (
    Context,
    ContextNoise,
    Guidance,
    History,
    Model,
    Plot,
    Report,
    SampleSeed,
    Sheet,
    Sink,
    Steps,
    Threads,
    Units,
)


def units(
    model: Model = None,
    prompts: Annotated[int, typer.Option(min=2, help="Held-out prompts to generate.")] = 256,
    steps: Steps = None,
    guidance: Guidance = None,
    units: Units = None,
    method: Annotated[str | None, typer.Option(help="renoise or euler; the model's if not given.")] = None,
    window: Context = None,
    context_noise: ContextNoise = None,
    reference: Annotated[int, typer.Option(min=2, help="Real clips that the Frechet distance is to.")] = 1024,
    timed: Annotated[int, typer.Option(min=1, help="Clips generated one by one for the time.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Clips at a time.")] = 32,
    seed: SampleSeed = 0,
    threads: Threads = None,
    name: Annotated[str | None, typer.Option(help="Of the row in a table; the units if not given.")] = None,
    report: Report = None,
    sheet: Sheet = None,
) -> None:
    """Prompt adherence with its control, Frechet distance with its floors, and seconds a clip."""
    from videoar.evaluation.adherence import generated, heldout_prompts
    from videoar.evaluation.sheet import contact_sheet
    from videoar.evaluation.unit_quality import unit_quality
    from videoar.evaluation.unit_table import unit_table
    from videoar.model_folder import write_json

    with readable_errors():
        expect_file("evaluate", "--report", report)
        expect_file("evaluate", "--sheet", sheet)
        pipeline, folder = load_units(model, threads)
        options = {"steps": steps, "guidance": guidance, "units": units, "method": method, "window": window}
        options["context_noise"] = context_noise
        sizes = {"prompts": prompts, "batch": batch, "reference": reference, "timed": timed}
        with console.status("loading") as status:
            found = unit_quality(pipeline, seed=seed, progress=status.update, **sizes, **options)
        figures = {"name": name or found.units, "model": str(folder), "seed": seed, **found.to_dict()}
        typer.echo(unit_table([figures]))
        if report is not None:
            write_json(report, figures)
        if sheet is not None:
            captions = heldout_prompts(12, seed)
            videos = generated(pipeline, captions, seed=seed, **options)
            contact_sheet(videos, captions, sheet, wrap=pipeline.defaults.wrap)


def long_stream(
    model: Model = None,
    frames: Annotated[int, typer.Option(help="Length.")] = 2000,
    streams: Annotated[int, typer.Option(min=1, help="Held-out prompts, streamed as one batch.")] = 8,
    context: Context = None,
    sink: Sink = None,
    context_noise: ContextNoise = None,
    steps: Steps = None,
    guidance: Guidance = None,
    units: Units = None,
    seed: SampleSeed = 0,
    threads: Threads = None,
    report: Report = None,
    plot: Plot = None,
) -> None:
    """Memory, time and adherence of a long stream, from its beginning to its end."""
    from rich.progress import Progress

    from videoar.evaluation.long_stream import stream_report
    from videoar.evaluation.stream_plots import draw_stream
    from videoar.model_folder import write_json

    with readable_errors():
        expect_file("evaluate", "--report", report)
        expect_file("evaluate", "--plot", plot)
        pipeline, folder = load_units(model, threads)
        options = {"window": context, "sink": sink, "steps": steps, "guidance": guidance, "units": units}
        options["context_noise"] = context_noise
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("streaming", total=frames)
            sizes = {"frames": frames, "streams": streams}
            found = stream_report(
                pipeline, seed=seed, progress=lambda done: progress.update(task, completed=done), **sizes, **options
            )
        figures = {"model": str(folder), "seed": seed, **found.to_dict()}
        memory = ", ".join(f"{count / 2**20:.0f} MiB after {frame}" for frame, count in found.memory.items())
        typer.echo(f"{found.frames} frames of {found.streams} streams, {found.frames_per_second:.1f} frames/s in all")
        typer.echo(f"memory: {memory}")
        typer.echo(f"ms a unit: {', '.join(f'{1e3 * part.seconds_per_unit:.1f}' for part in found.stretches)}")
        typer.echo(
            f"last 100 frames: {_percent(found.last)}; against other prompts: {_percent(found.last_wrong_prompt)}"
        )
        if report is not None:
            write_json(report, figures)
        if plot is not None:
            draw_stream(figures, plot)


def switch(
    model: Model = None,
    streams: Annotated[int, typer.Option(min=1, help="Streams, each with its own two prompts.")] = 32,
    before: Annotated[
        int | None,
        typer.Option(help="Latent frames before the switch, where a unit ends them; two clips if not given."),
    ] = None,
    contexts: Annotated[int, typer.Option(min=1, help="Context lengths that are watched after it.")] = 3,
    context: Context = None,
    sink: Sink = None,
    context_noise: ContextNoise = None,
    history: History = None,
    steps: Steps = None,
    guidance: Guidance = None,
    units: Units = None,
    seed: SampleSeed = 0,
    threads: Threads = None,
    report: Report = None,
    plot: Plot = None,
) -> None:
    """How soon a stream follows another prompt, which differs from the first in every attribute."""
    from videoar.evaluation.followed import switch_report
    from videoar.evaluation.stream_plots import draw_switch
    from videoar.model_folder import write_json

    with readable_errors():
        expect_file("evaluate", "--report", report)
        expect_file("evaluate", "--plot", plot)
        pipeline, folder = load_units(model, threads)
        options = {"window": context, "sink": sink, "history": history}
        options |= {"steps": steps, "guidance": guidance, "units": units, "context_noise": context_noise}
        sizes = {"streams": streams, "before": before, "contexts": contexts}
        with console.status("streaming") as status:
            found = switch_report(
                pipeline, seed=seed, progress=lambda done: status.update(f"{done} streams"), **sizes, **options
            )
        figures = {"model": str(folder), "seed": seed, **found.to_dict()}
        typer.echo(f"before the switch, the old prompt: {_percent(found.shown_before)}")
        for number, (new, old) in enumerate(zip(found.new, found.old, strict=True)):
            mark = "  <- one context length" if number == found.context else ""
            typer.echo(
                f"{number:3} latent frames after, the new prompt: {_percent(new)}; the old: {_percent(old)}{mark}"
            )
        typer.echo(f"follows after (median, latent frames): {found.follows_after}")
        if report is not None:
            write_json(report, figures)
        if plot is not None:
            draw_switch(figures, plot)


def _percent(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.1f}%" for name, share in shares.items())
