"""Muon for matrices, AdamW for the rest, and the learning rate of a step.

Muon replaces a matrix's momentum by the nearest orthogonal matrix (five Newton-Schulz iterations), so that every
direction learns at one rate; a convolution's kernel counts as a matrix (outputs, inputs x taps).
Source: Jordan et al., Muon (2024); Loshchilov and Hutter, AdamW (2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from videoar.training.expectations import expect, expect_at_least, expect_decay, expect_positive


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move.

    Args:
        kind: `"muon"` (matrices by Muon, the rest by AdamW) or `"adamw"` (everything by AdamW).
        learning_rate: AdamW's peak.
        muon_learning_rate: Muon's peak.
        momentum: Muon's.
        betas: AdamW's.
        weight_decay: decoupled, on everything of two or more dimensions.
        warmup: steps of linear rise.
        final: share of the peak that the cosine ends at.
        clip: largest norm of the gradient; 0 leaves it.
    """

    kind: str = "muon"
    learning_rate: float = 2e-3
    muon_learning_rate: float = 0.02
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup: int = 50
    final: float = 0.02
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("muon", "adamw"):
            raise ValueError(f"OptimizerConfig: expected kind 'muon' or 'adamw', got {self.kind!r}")
        expect_positive(self, "learning_rate", "muon_learning_rate")
        expect_at_least(self, 0, "weight_decay", "warmup", "final", "clip")
        expect_decay(self, "momentum")
        expect(self, "of two decays in [0, 1)", lambda betas: all(0 <= beta < 1 for beta in betas), "betas")


def schedule(step: int, steps: int, *, warmup: int, final: float) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a cosine to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """A matrix with the same singular vectors and all singular values near 1 (0.7 to 1.2)."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        square = x @ x.T
        x = torch.addmm(3.4445 * x, torch.addmm(-4.7750 * square, square, square, beta=1, alpha=2.0315), x)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer of two rules; a group's `rule` is `"muon"` or `"adamw"`.

    Every group's `peak` is its highest learning rate: `set_learning_rate` scales them together.
    """

    def __init__(self, groups: Iterable[dict]) -> None:
        defaults = {"lr": 0.0, "peak": 0.0, "rule": "adamw", "momentum": 0.95, "betas": (0.9, 0.95)}
        super().__init__(groups, {**defaults, "weight_decay": 0.0, "eps": 1e-8})

    def set_learning_rate(self, share: float) -> None:
        """Sets each group's rate to this share of its peak."""
        for group in self.param_groups:
            group["lr"] = share * group["peak"]

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            update = self._muon if group["rule"] == "muon" else self._adamw
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update(parameter, group)

    def _muon(self, parameter: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient, momentum = parameter.grad, group["momentum"]
        state["momentum"].lerp_(gradient, 1 - momentum)
        matrix = gradient.lerp(state["momentum"], momentum).flatten(1)  # Nesterov
        update = orthogonalize(matrix) * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
        parameter.add_(update.view(parameter.shape), alpha=-group["lr"])

    def _adamw(self, parameter: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        step, (beta1, beta2) = int(state["step"]), group["betas"]
        state["mean"].lerp_(parameter.grad, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        scale = (state["square"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["mean"], scale, value=-group["lr"] / (1 - beta1**step))


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, plain: tuple[str, ...] = ()) -> MuonAdamW:
    """Sorts a model's parameters by rule.

    Args:
        model: what is trained.
        config: the rates.
        plain: parts of parameter names that AdamW keeps although they are matrices: embeddings, first and last layers.
    """
    chosen: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2
            muon = config.kind == "muon" and matrix and not any(part in name for part in plain)
            chosen.setdefault(("muon" if muon else "adamw", matrix), []).append(parameter)
    peaks = {"muon": config.muon_learning_rate, "adamw": config.learning_rate}
    return MuonAdamW(
        {
            "params": parameters,
            "rule": rule,
            "peak": peaks[rule],
            "momentum": config.momentum,
            "betas": config.betas,
            "weight_decay": config.weight_decay if matrix else 0.0,
        }
        for (rule, matrix), parameters in chosen.items()
    )
