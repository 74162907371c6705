"""Stage 1 of paper U's training: the teacher learns to predict unit after unit.

Teacher forcing: a clean copy of the sequence stands before the noisy one, every unit sees the clean units before it,
and has a noise level of its own. Source: paper U, Sec. 3.3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from videoar.training.unit_run import UnitTraining, train_units


@dataclass(frozen=True)
class CausalTraining(UnitTraining):
    """A causal run; every setting is `UnitTraining`'s, and `start` is the teacher's folder."""

    output: str = "runs/unit_causal"
    start: str | None = "runs/unit_teacher/model"
    units: str = "cube(2, 2, 2)"


def train(config: CausalTraining) -> Path:
    """Run (or resume) a training and return the folder of the trained model, a `UnitPipeline`.

    Raises:
        ValueError: no teacher to start from.
    """
    if config.start is None:
        raise ValueError("unit-causal: expected start to be a teacher's folder, got None")
    return train_units(config, causal=True)
