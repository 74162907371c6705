"""`videoar profile`: frames per second, where the time goes, and what the machine would allow."""

from __future__ import annotations

from enum import StrEnum
from math import inf
from pathlib import Path
from typing import Annotated

import typer

from videoar.cli.errors import console, expect_file, readable_errors
from videoar.cli.models import expect_model, holds_units
from videoar.cli.options import Precision


class Dtype(StrEnum):
    """What a transformer that is not packed computes in."""

    float32 = "float32"
    bf16 = "bf16"
    float16 = "float16"

    @property
    def dtype(self):
        import torch

        return {"float32": torch.float32, "bf16": torch.bfloat16, "float16": torch.float16}[self.value]


class Device(StrEnum):
    """Where to run."""

    cpu = "cpu"
    cuda = "cuda"


class Peer(StrEnum):
    """What to run beside it."""

    eager = "eager"


def profile(
    preset: Annotated[
        str | None,
        typer.Option(help="A preset with random weights: L, XL, 4B, S, sprites, tiny; paper U: 1.3B, sprites, tiny."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="A model folder; without it and --preset, the shipped model.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Clip as frames x height x width, such as 17x128x128; the model's if not given.")
    ] = None,
    scales: Annotated[str | None, typer.Option(help="With --preset: scales, such as 1,2,4 or 1x1,2x3,4x7.")] = None,
    units: Annotated[
        str | None,
        typer.Option(help='Paper U: its units, such as "frame"; a preset of that paper gets "cube(2, 2, 2)".'),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Paper U: steps before the clean pass; a preset's: 4.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="With --preset: only the first so many layers; it is said.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips at once.")] = 1,
    guidance: Annotated[
        bool | None, typer.Option("--guidance/--no-guidance", help="Run each step without the condition too.")
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode/--no-decode", " /--no-vae", help="Decode to pixels, or stop at the latents.")
    ] = True,
    precision: Annotated[
        Precision | None,
        typer.Option(help="Pack the transformer's weights, as `videoar generate`; bf16 for a preset if not given."),
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Leave the transformer unpacked, in this dtype.")] = None,
    decode_precision: Annotated[
        Precision | None,
        typer.Option(help="Paper S: what the decoder computes in; if not given bf16 on a GPU, else float32."),
    ] = None,
    device: Annotated[Device | None, typer.Option(help="The GPU where there is one, if not given.")] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Timed clips; as many as fit --seconds if not given.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Of timing, about; 3 clips at least.")] = 10.0,
    once: Annotated[bool, typer.Option("--once", help="One clip and no other, for what takes minutes.")] = False,
    compare: Annotated[Peer | None, typer.Option(help="Run the same model in eager PyTorch beside it.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page with a timeline.")] = None,
) -> None:
    """Measure frames per second, parts and steps of a clip beside this machine's limits."""
    import torch
    from rich.console import Console

    from videoar.next_scale.config import PRESETS
    from videoar.next_scale.shipped import shipped_model
    from videoar.profiling.contender import Options
    from videoar.profiling.measure import profile as measure
    from videoar.profiling.page import save_page
    from videoar.profiling.shapes import parse_scales, parse_shape
    from videoar.profiling.subject import folder_subject, preset_subject
    from videoar.profiling.table import print_profile
    from videoar.profiling.unit_subject import SHAPES, unit_folder_subject, unit_preset_subject

    with readable_errors():
        if preset and model:
            raise ValueError("profile: expected --preset or --model, got both")
        if not 0 <= seconds < inf:
            raise ValueError(f"profile: expected --seconds of at least 0, got {seconds}")
        expect_file("profile", "--json", json)
        expect_file("profile", "--html", html)
        packs = precision or (Precision.bf16 if preset and dtype is None else None)
        options = Options(
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            batch=batch,
            guidance=guidance,
            decode=decode,
            pack=packs.dtype if packs else None,
            dtype=dtype.dtype if dtype else None,
            decode_dtype=decode_precision.dtype if decode_precision else None,
            compare_eager=compare is not None,
        )
        if once and rounds is not None:
            raise ValueError("profile: expected --once or --rounds, got both")
        only_in_u = preset in SHAPES and preset not in PRESETS
        of_u = units is not None or steps is not None or only_in_u or (model and holds_units(model))
        if of_u and scales:
            raise ValueError("profile: expected --scales only for paper S")
        sizes = {"shape": parse_shape(shape) if shape else None}
        chosen = {"units": units, "steps": steps}
        if preset:
            sizes["layers"] = layers
            chosen = {"units": units or "cube(2, 2, 2)", "steps": 4 if steps is None else steps}
        elif layers is not None:
            raise ValueError("profile: expected --layers only with --preset")
        if not of_u:
            chosen = {"scales": parse_scales(scales) if scales else None}
        with console.status("building the model") as status:
            if preset:
                subject = (unit_preset_subject if of_u else preset_subject)(preset, options, **sizes, **chosen)
            else:
                folder = model or shipped_model()
                if folder is None:
                    raise ValueError("profile: expected --preset or --model: this installation ships no model")
                expect_model(folder)
                subject = (unit_folder_subject if of_u else folder_subject)(folder, options, **sizes, **chosen)
            found = measure(subject, rounds=rounds, seconds=seconds, once=once, progress=status.update)
        print_profile(found, Console())
        if json is not None:
            found.save(json)
        if html is not None:
            save_page(found, html)
