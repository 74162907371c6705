"""The same transformer run twice, at equal steps: `context` paper and resampled.

python -m videoar.training.ablation configs/sprites/transformer.yaml steps=1500 output=runs/sprites/ablation
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from videoar.model_folder import read_json, write_json
from videoar.training.config import load_config
from videoar.training.transformer import TransformerTraining, train

CONTEXTS = ("paper", "resampled")


def context_ablation(config: TransformerTraining) -> dict[str, dict[str, float]]:
    """Train with each context, the rest alike, and return their last evaluations; also `ablation.json`.

    Args:
        config: of the runs; each gets a folder of its own under `output`.
    """
    found = {}
    for context in CONTEXTS:
        output = Path(config.output) / context
        train(replace(config, output=str(output), model=config.model.replace(context=context)))
        found[context] = read_json(output / "curve.json")["points"][-1]
    write_json(Path(config.output) / "ablation.json", found)
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """A Markdown table: one row a figure, one column a context."""
    names = list(next(iter(found.values())))
    rows = [["", *found], ["---"] * (1 + len(found))]
    rows += [[name, *(f"{point[name]:.4g}" for point in found.values())] for name in names]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(arguments: Sequence[str]) -> None:
    """Run with a YAML file and dotted overrides."""
    path, *overrides = arguments
    print(table(context_ablation(load_config(path, overrides, TransformerTraining))))


if __name__ == "__main__":
    main(sys.argv[1:])
