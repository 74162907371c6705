"""`videoar evaluate sprites`: every figure that the built-in data can give about a model."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from videoar.cli.errors import console, expect_file, of_argument, readable_errors
from videoar.cli.options import Model, Report, SampleSeed, Sheet

evaluate_app = typer.Typer(help="Measure a model.", no_args_is_help=True)


@evaluate_app.callback()
def _group() -> None:
    """Measure a model."""


@evaluate_app.command()
def sprites(
    model: Model = None,
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts to generate.")] = 256,
    clips: Annotated[
        int, typer.Option(min=1, help="Held-out clips for the tokenizer, the losses and image-to-video.")
    ] = 256,
    guidance: Annotated[
        float | None, typer.Option(help="Constant guidance; the model's schedule if not given.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the bits; the model's own if not given.")] = None,
    seed: SampleSeed = 0,
    report: Report = None,
    sheet: Sheet = None,
) -> None:
    """Tokenizer gates, use of the caption, prompt adherence with its control, and image-to-video."""
    from videoar.data.pixels import to_uint8
    from videoar.evaluation.adherence import heldout_prompts, image_to_video_adherence, text_to_video_adherence
    from videoar.evaluation.sheet import contact_sheet
    from videoar.evaluation.tokenizer import evaluate_tokenizer
    from videoar.model_folder import write_json
    from videoar.next_scale.pipeline import VideoPipeline
    from videoar.next_scale.shipped import shipped_model
    from videoar.training.heldout import pipeline_caption_losses

    with readable_errors():
        expect_file("evaluate", "--report", report)
        expect_file("evaluate", "--sheet", sheet)
        folder = model or shipped_model()
        if folder is None:
            raise ValueError("evaluate: expected --model, because this installation ships no model")
        with of_argument("--model"):
            pipeline = VideoPipeline.from_pretrained(folder)
        options = {"guidance": guidance, "temperature": temperature}
        with console.status("tokenizer"):
            tokenizer = evaluate_tokenizer(pipeline.tokenizer, clips=clips)
        with console.status("losses"):
            losses = pipeline_caption_losses(pipeline, clips=clips)
        with console.status("prompts"):
            started = time.perf_counter()
            text = text_to_video_adherence(pipeline, prompts=prompts, seed=seed, **options)
            seconds = time.perf_counter() - started
        with console.status("image to video"):
            image = image_to_video_adherence(pipeline, clips=clips, seed=seed, **options)
        figures = {
            "model": str(folder),
            "tokenizer": {**tokenizer._asdict(), "entropy": tokenizer.entropy._asdict()},
            "caption_losses": losses,
            "text_to_video": text._asdict(),
            "image_to_video": image._asdict(),
            "seconds_per_clip": seconds / max(prompts, 1),
        }
        _print(figures)
        if report is not None:
            write_json(report, figures)
        if sheet is not None:
            captions = heldout_prompts(12, seed)
            videos = to_uint8(pipeline.generate(captions, seed=list(range(12)), **options))
            contact_sheet(videos, captions, sheet)


def _print(figures: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    tokenizer, losses = figures["tokenizer"], figures["caption_losses"]
    console.print(
        f"tokenizer, {tokenizer['clips']} held-out clips: PSNR {tokenizer['psnr']:.2f} dB, "
        f"sprite alone {tokenizer['foreground_psnr']:.2f} dB"
    )
    console.print(f"bit entropy per scale at a frame index: {[round(x, 3) for x in tokenizer['entropy']['frame']]}")
    console.print("caption losses: " + ", ".join(f"{name} {value:.4f}" for name, value in losses.items()))
    columns = {
        "reconstruction": tokenizer["attributes"][-1],
        "without its last scale": tokenizer["attributes"][-2] if len(tokenizer["attributes"]) > 1 else {},
        "text to video": figures["text_to_video"]["right"],
        "under the wrong prompt": figures["text_to_video"]["wrong_prompt"],
        "image to video": figures["image_to_video"]["right"],
    }
    table = Table("attribute", *columns)
    for name in figures["text_to_video"]["right"]:
        table.add_row(name, *(f"{100 * values[name]:.1f}%" if values else "" for values in columns.values()))
    console.print(table)
    console.print(f"{figures['seconds_per_clip']:.2f} s a clip, generated in batches and measured")
