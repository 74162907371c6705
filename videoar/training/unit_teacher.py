"""Training of paper U's teacher: full attention over the whole clip, one noise level, flow matching.

With `units: multiscale(...)` and a teacher to start from, it learns the joint sequence of all levels, which is the real
score for models of that unit. Source: paper U, Sec. 3.3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from videoar.training.unit_run import UnitTraining, train_units


@dataclass(frozen=True)
class TeacherTraining(UnitTraining):
    """A teacher's run; every setting is `UnitTraining`'s."""

    output: str = "runs/unit_teacher"


def train(config: TeacherTraining) -> Path:
    """Run (or resume) a training and return the folder of the trained model, a `UnitPipeline`."""
    return train_units(config, causal=False)
