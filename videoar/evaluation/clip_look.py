"""What adherence does not see: how quick, how large and how bright sprites are, in clips of a model and in real ones.

    python -m videoar.evaluation.clip_look runs/sprites/unit_teacher/model runs/sprites/unit_dmd/model

Adherence asks whether a sprite is nearer "quickly" than "slowly", not how quick it is. Real clips that are drawn anew
as much quicker or larger as those of the last model tell what that alone does to the Frechet distance.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import torch
from torch import Tensor

from videoar.data.captions import COLOURS, DIRECTIONS, SHAPES, SPEEDS, Attributes, caption_of, parse_caption
from videoar.data.sprites import SpriteConfig, draw_parameters, measure_batch, render_batch
from videoar.evaluation.adherence import generated, heldout_prompts
from videoar.evaluation.frechet import DistanceParts, clip_features, distance_parts
from videoar.evaluation.unit_quality import FLOOR_SEED, REFERENCE_SEED, reconstructed
from videoar.model_folder import write_json
from videoar.next_unit.pipeline import UnitPipeline
from videoar.tokenizer.autoencoder import VideoAutoencoder

_FRAMES = 16  # that a way is counted over, as SpriteConfig.travel is where sprites wrap around
_SIDE = 64  # pixels of the frames that are measured


class Spread(NamedTuple):
    """Mean and standard deviation over clips."""

    mean: float
    deviation: float


class ClipLook(NamedTuple):
    """Measured over a set of clips; lengths in pixels of a 64-pixel frame.

    Attributes:
        ways: by the speed that captions name, the way of the sprite in 16 frames.
        side: square root of the sprite's area.
        background: its mean brightness, 0 to 1.
        drift: how much brighter the last frame's background is than the first's.
        phase: length of the mean of exp(2 pi i x / 64) over clips, x the sprite's place in the middle frame, the
            greater of both axes: 0 where places are spread evenly, 1 where they are one.
    """

    ways: dict[str, Spread]
    side: Spread
    background: Spread
    drift: Spread
    phase: float


def clip_look(videos: Tensor, captions: Sequence[str]) -> ClipLook:
    """Measure clips (N, T, H, W, 3) uint8 of sprites on a torus; those without a sprite do not count.

    Raises:
        ValueError: fewer than two clips with a sprite at a speed.
    """
    ways: dict[str, list[float]] = {speed: [] for speed in SPEEDS}
    sides, levels, drifts, places = [], [], [], []
    for seen, caption in zip(measure_batch(videos, wrap=True), captions, strict=True):
        levels.append(seen.backgrounds.mean().item())
        drifts.append((seen.backgrounds[-1] - seen.backgrounds[0]).item())
        steps = (seen.centres.diff(dim=0) + _SIDE / 2) % _SIDE - _SIDE / 2  # the shorter way round
        steps = steps[~steps[:, 0].isnan()]
        if len(steps):
            ways[parse_caption(caption).speed].append(_FRAMES * steps.mean(0).norm().item())
            sides.append(seen.areas.nanmean().sqrt().item())
            places.append(seen.centres[len(seen.centres) // 2])
    if min(map(len, ways.values())) < 2:
        found = {speed: len(some) for speed, some in ways.items()}
        raise ValueError(f"clip_look: expected at least two clips with a sprite at each speed, got {found}")
    turns = torch.stack(places) * (2 * torch.pi / _SIDE)  # (N, 2)
    phase = torch.complex(turns.cos().nanmean(0), turns.sin().nanmean(0)).abs().amax().item()
    spreads = {speed: _spread(some) for speed, some in ways.items()}
    return ClipLook(spreads, _spread(sides), _spread(levels), _spread(drifts), phase)


def real_clips(
    clips: int, seed: int, *, frames: int, faster: float = 1, larger: float = 1, batch: int = 32
) -> tuple[Tensor, list[str]]:
    """Held-out clips on a torus and their captions, drawn with quicker or larger sprites than real ones have."""
    config = SpriteConfig(frames=frames, wrap=True)
    # The renderer leaves room for the largest sprite of its config, and does not ask how far it goes.
    widest = config.sprite[1] * max(larger, 1)
    roomy = SpriteConfig(frames=frames, wrap=True, sprite=(config.sprite[0], widest), travel=(1.0, 1.0))
    videos, captions = [], []
    for first in range(0, clips, batch):
        drawn = draw_parameters(min(batch, clips - first), seed, first, split="heldout", config=config)
        videos.append(render_batch(drawn._replace(step=drawn.step * faster, size=drawn.size * larger), roomy)[0])
        captions += [
            caption_of(Attributes(COLOURS[c], SHAPES[s], DIRECTIONS[d], SPEEDS[v]))
            for c, s, d, v in torch.stack(drawn[:4], 1).tolist()
        ]
    return torch.cat(videos), captions


def look_rows(
    pipelines: dict[str, UnitPipeline],
    *,
    clips: int = 256,
    reference: int = 1024,
    batch: int = 32,
    seed: int = 0,
    **options,
) -> dict[str, tuple[ClipLook, DistanceParts]]:
    """Real clips, reconstructed ones, each model's, and real ones drawn as the last model's are.

    Args:
        pipelines: models by name; clips are as long as the first one's, whose autoencoder gives the features of all.
        clips: of each row, from held-out prompts.
        reference: real clips that distances are to.
        batch: clips at a time.
        seed: of prompts and samples.
        options: fields of `UnitDefaults` to change in every model.

    Raises:
        ValueError: no model. TypeError: an autoencoder that is not ours.
    """
    if not pipelines:
        raise ValueError("look_rows: expected at least one model, got none")
    one = next(iter(pipelines.values()))
    autoencoder, size = one.autoencoder, {"frames": one.frames, "batch": batch}
    if not isinstance(autoencoder, VideoAutoencoder):
        raise TypeError(f"look_rows: expected a VideoAutoencoder, got {type(autoencoder).__name__}")
    there = clip_features(autoencoder, real_clips(reference, REFERENCE_SEED, **size)[0], batch=batch)

    def row(videos: Tensor, captions: Sequence[str]) -> tuple[ClipLook, DistanceParts]:
        parts = distance_parts(clip_features(autoencoder, videos, batch=batch), there)
        return clip_look(videos, captions), parts

    real, captions = real_clips(clips, FLOOR_SEED, **size)
    rows = {"real": row(real, captions), "reconstructed": row(reconstructed(autoencoder, real, batch), captions)}
    prompts = heldout_prompts(clips, seed)
    for name, pipeline in pipelines.items():
        rows[name] = row(generated(pipeline, prompts, batch=batch, seed=seed, **options), prompts)
    was, now = rows["reconstructed"][0], rows[name][0]
    quicker = fmean(now.ways[speed].mean / was.ways[speed].mean for speed in SPEEDS)
    wider = now.side.mean / was.side.mean
    for title, change in (
        (f"real, {quicker:.2f} times as quick", {"faster": quicker}),
        (f"real, {wider:.2f} times as wide", {"larger": wider}),
        ("real, both", {"faster": quicker, "larger": wider}),
    ):
        rows[title] = row(*real_clips(clips, FLOOR_SEED, **size, **change))
    return rows


def look_figures(rows: dict[str, tuple[ClipLook, DistanceParts]]) -> dict[str, dict]:
    """The same as plain numbers, for a report."""
    found = {}
    for name, (look, parts) in rows.items():
        spreads = {field: value._asdict() for field, value in look._asdict().items() if isinstance(value, Spread)}
        ways = {speed: way._asdict() for speed, way in look.ways.items()}
        found[name] = {"ways": ways, **spreads, "phase": look.phase, "frechet": parts._asdict()}
    return found


def look_table(rows: dict[str, tuple[ClipLook, DistanceParts]]) -> str:
    """Markdown, a row for each name."""
    slow, quick = SPEEDS
    heading = [
        "clips",
        slow,
        quick,
        "side",
        "background",
        "its drift",
        "phase",
        "Frechet",
        "means",
        "pictures",
        "changes",
    ]
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)]]
    for name, (look, parts) in rows.items():
        lengths = [f"{x.mean:.1f} ± {x.deviation:.1f}" for x in (look.ways[slow], look.ways[quick], look.side)]
        levels = [f"{look.background.mean:.3f} ± {look.background.deviation:.3f}", f"{look.drift.mean:+.3f}"]
        lines.append([name, *lengths, *levels, f"{look.phase:.2f}", *(f"{x:.3f}" for x in parts)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(values: Sequence[float]) -> Spread:
    return Spread(fmean(values), stdev(values))


def main() -> None:
    parser = argparse.ArgumentParser(description="Motion, size and background of a model's sprites beside real ones.")
    parser.add_argument("models", nargs="+", help="folders, or name=folder")
    parser.add_argument("--clips", type=int, default=256, help="of each row")
    parser.add_argument("--reference", type=int, default=1024, help="real clips that distances are to")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and samples")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--shift", type=float)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--method", help="renoise or euler")
    parser.add_argument("--context-noise", type=float, help="level of noise at which later units see finished ones")
    parser.add_argument("--report", type=Path, help="write the figures to this JSON file")
    given = vars(parser.parse_args())
    models, threads, report = (given.pop(name) for name in ("models", "threads", "report"))
    if threads is not None:
        torch.set_num_threads(threads)
    named = [model.split("=", 1) if "=" in model else (model, model) for model in models]
    try:
        rows = look_rows({name: UnitPipeline.from_pretrained(Path(folder)) for name, folder in named}, **given)
        print(look_table(rows))
        if report is not None:
            write_json(report, look_figures(rows))
    except (ValueError, TypeError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
