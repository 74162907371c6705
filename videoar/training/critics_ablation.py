"""Symmetric DMD with each kind of critics, over several seeds: the paper's Table 4.

python -m videoar.training.critics_ablation configs/sprites/unit_dmd.yaml output=runs/sprites/critics -- 0 1 2

A run that is already there, with the same settings, is not trained again, so the command goes on where it was
interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

from videoar.evaluation.adherence import ATTRIBUTES, text_to_video_adherence
from videoar.model_folder import read_json, write_json
from videoar.next_unit.pipeline import UnitPipeline
from videoar.training.config import load_config
from videoar.training.run_settings import ASIDE, differences, plain_settings
from videoar.training.unit_dmd import DmdTraining, train
from videoar.training.unit_dmd_objective import CRITICS

PROMPTS = 256
_TICKED = {"full": (1, 0, 0), "forward": (0, 1, 0), "backward": (0, 0, 1), "both": (0, 1, 1)}

Scores = dict[str, dict[str, dict[str, float]]]  # critics, seed, attribute: share of prompts


def critics_ablation(config: DmdTraining, seeds: Sequence[int], *, prompts: int = PROMPTS) -> Scores:
    """Train each kind of critics with each seed, the rest alike, and measure the models; also `critics.json`.

    Args:
        config: of the runs; each gets a folder of its own under `output`.
        seeds: of the runs. All models generate the same prompts from the same noise.
        prompts: held-out prompts a model.

    Returns:
        For critics and seed, the share of prompts followed by attribute, and their mean as `total`.
    """
    found: Scores = {name: {} for name in CRITICS}
    for seed in seeds:
        for name in CRITICS:
            output = Path(config.output) / f"{name}-{seed}"
            found[name][str(seed)] = _scores(replace(config, output=str(output), critics=name, seed=seed), prompts)
            write_json(Path(config.output) / "critics.json", found)
    return found


def _scores(config: DmdTraining, prompts: int) -> dict[str, float]:
    """What `adherence.json` of a run says, if it is of these settings and as many prompts; else it is made anew."""
    path = Path(config.output) / "adherence.json"
    settings = plain_settings(config)
    if path.is_file():
        known = read_json(path)
        if known.get("prompts") == prompts and not differences(known["settings"], settings, apart=ASIDE):
            return known["right"]
    right = _measure(train(config), prompts, wrap=config.data.wrap)
    write_json(path, {"prompts": prompts, "right": right, "settings": settings})
    return right


def _measure(folder: Path, prompts: int, *, wrap: bool) -> dict[str, float]:
    right = text_to_video_adherence(UnitPipeline.from_pretrained(folder), prompts=prompts, wrap=wrap).right
    return {**right, "total": mean(right[name] for name in ATTRIBUTES)}


def table(found: Scores) -> str:
    """Markdown, one row for each kind of critics: the paper's columns, and percentages over seeds."""
    names = ("total", *ATTRIBUTES)
    rows = [["full", "causal forward", "causal backward", *names], ["---"] * (3 + len(names))]
    for critics, by_seed in found.items():
        ticks = ["x" if ticked else "" for ticked in _TICKED[critics]]
        rows.append([*ticks, *(spread([scores[name] for scores in by_seed.values()]) for name in names)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def spread(shares: Sequence[float]) -> str:
    """Mean and sample standard deviation, in percent."""
    shares = [100 * share for share in shares]
    return f"{mean(shares):.1f}" + (f" ± {stdev(shares):.1f}" if len(shares) > 1 else "")


def main(arguments: Sequence[str]) -> None:
    """Run with a YAML file, dotted overrides and, after `--`, the seeds (0, 1 and 2)."""
    settings, said = list(arguments), ["0", "1", "2"]
    if "--" in settings:
        place = settings.index("--")
        settings, said = settings[:place], settings[place + 1 :]
    try:
        if not settings:
            raise ValueError("critics_ablation: expected a YAML file first, got none")
        if not said or not all(seed.isdecimal() for seed in said):
            raise ValueError(f"critics_ablation: expected seeds after --, got {' '.join(said) or 'none'}")
        config = load_config(settings[0], settings[1:], DmdTraining)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    print(table(critics_ablation(config, [int(seed) for seed in said])))


if __name__ == "__main__":
    main(sys.argv[1:])
