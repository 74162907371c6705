"""What every run does around its steps: resume, average, log, evaluate, write checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from videoar.model_folder import read_json, write_json
from videoar.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from videoar.training.ema import WeightAverage
from videoar.training.logging import RunLog
from videoar.training.optimizer import OptimizerConfig, schedule
from videoar.training.run_settings import check_settings, keep_settings


class RunSettings(Protocol):
    """What `run_steps` reads of a run's config."""

    output: str
    steps: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int


def run_steps(
    accelerator: Accelerator,
    config: RunSettings,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    *,
    step: Callable[[int], dict[str, float]],
    evaluate: Callable[[], dict[str, float]],
) -> None:
    """Take the steps of a run from its last checkpoint on.

    Args:
        accelerator: only its main process evaluates and writes.
        config: how often.
        model, optimizer, average: the state; the average follows the model after every step.
        step: takes step number n (from 0) and returns its metrics; all that it draws must follow from n.
        evaluate: gives a report, which also goes to `curve.json`; an empty one is left out.

    Raises:
        ValueError: the checkpoint was trained under other settings, or for more steps.
    """
    start = 0
    if (checkpoint := latest_checkpoint(config.output)) is not None:
        check_settings(config)
        start = load_checkpoint(checkpoint, model, optimizer, average)["step"]
        if start > config.steps:
            raise ValueError(f"{config.output}: expected steps of at least the {start} done, got {config.steps}")
    if accelerator.is_main_process:
        keep_settings(config)
    with RunLog(accelerator, config.steps, start=start, every=config.log_every) as log:
        for number in range(start, config.steps):
            metrics = step(number)
            average.update(model)
            log.step(number, metrics)
            done = number + 1
            if not accelerator.is_main_process:
                continue
            due = config.evaluate_every and (done % config.evaluate_every == 0 or done == config.steps)
            if due and (report := evaluate()):
                log.report(done, report, prefix="heldout")
                add_to_curve(config.output, done, report)
            if config.checkpoint_every and done % config.checkpoint_every == 0:
                save_checkpoint(config.output, done, model, optimizer, average)


def descend(
    accelerator: Accelerator,
    loss: Tensor,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    config: OptimizerConfig,
    *,
    step: int,
    steps: int,
) -> float:
    """One move down the gradient of a loss, at the rate of this step; returns the gradient's norm before clipping.

    Raises:
        FloatingPointError: the loss or the norm is not finite; no weight has moved.
    """
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(model.parameters(), config.clip) if config.clip else loss.new_zeros(())
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # FSDP2 keeps it spread over processes
    found, size = torch.stack([loss.detach().float(), norm.float()]).tolist()  # one wait for a GPU
    _expect_finite("loss", found, step)
    if accelerator.scaler is None:  # which leaves out such a step, and scales less
        _expect_finite("norm of the gradient", size, step)
    optimizer.optimizer.set_learning_rate(schedule(step, steps, warmup=config.warmup, final=config.final))
    optimizer.step()
    optimizer.zero_grad()
    return size


def _expect_finite(name: str, value: float, step: int) -> None:
    if not isfinite(value):
        raise FloatingPointError(f"step {step}: expected a finite {name}, got {value}")


def add_to_curve(output: str | Path, step: int, report: dict[str, float]) -> None:
    """Append an evaluation to `curve.json`, replacing what a killed run wrote beyond its last checkpoint."""
    path = Path(output) / "curve.json"
    points = read_json(path)["points"] if path.is_file() else []
    points = [point for point in points if point["step"] < step] + [{"step": step, **report}]
    write_json(path, {"points": points})
