"""Muon and AdamW as one optimizer."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from videoar.training.ema import WeightAverage
from videoar.training.loop import descend
from videoar.training.optimizer import OptimizerConfig, build_optimizer, orthogonalize, schedule


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "sgd"}, "kind 'muon' or 'adamw', got 'sgd'"),
        ({"learning_rate": 0.0}, "learning_rate above 0, got 0.0"),
        ({"muon_learning_rate": -1.0}, "muon_learning_rate above 0, got -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate above 0, got nan"),
        ({"betas": (0.9, 1.0)}, r"betas of two decays in \[0, 1\), got \(0.9, 1.0\)"),
        ({"clip": -1.0}, "clip of at least 0, got -1.0"),
    ],
)
def test_rates_that_make_no_sense_are_refused(changes, said):
    with pytest.raises(ValueError, match=f"OptimizerConfig: expected {said}"):
        OptimizerConfig(**changes)


@pytest.mark.parametrize(
    ("loss", "said"),
    [(lambda w: w.sum() * float("nan"), "loss"), (lambda w: (0 * w).sqrt().sum(), "norm of the gradient")],
)
def test_a_step_that_is_not_finite_is_named_and_moves_nothing(loss, said):
    accelerator, layer = Accelerator(), nn.Linear(2, 2)
    model, optimizer = accelerator.prepare(layer, build_optimizer(layer, OptimizerConfig()))
    before = layer.weight.clone()
    with pytest.raises(FloatingPointError, match=f"step 7: expected a finite {said}, got nan"):
        descend(accelerator, loss(layer.weight), model, optimizer, OptimizerConfig(), step=7, steps=9)
    assert torch.equal(layer.weight, before)


class _Waits(TorchDispatchMode):
    """Counts numbers that Python reads from tensors: on a GPU each waits for all work before it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_step_waits_once_for_its_loss_and_norm(clip):
    config = OptimizerConfig(clip=clip)
    accelerator, layer = Accelerator(), nn.Linear(2, 2, bias=False)
    model, optimizer = accelerator.prepare(layer, build_optimizer(layer, config))
    loss = layer.weight.square().sum()
    expected = 2 * layer.weight.detach().norm().item() if clip else 0.0
    with _Waits() as waits:
        norm = descend(accelerator, loss, model, optimizer, config, step=0, steps=9)
    assert waits.count <= 1 and norm == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_an_orthogonalized_matrix_has_singular_values_near_one(shape):
    matrix = torch.randn(shape)
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_orthogonalizing_keeps_the_singular_vectors():
    left, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    matrix = left @ torch.diag(torch.linspace(0.5, 2, 6, dtype=torch.float64)) @ right.T
    inner = left.T @ orthogonalize(matrix) @ right
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-6


def test_adamw_is_pytorchs():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    config = OptimizerConfig(kind="adamw", learning_rate=1e-2, weight_decay=0.1)
    optimizer = build_optimizer(ours, config)
    optimizer.set_learning_rate(1.0)
    reference = torch.optim.AdamW(
        [{"params": theirs.weight}, {"params": theirs.bias, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        weight_decay=0.1,
    )
    for _ in range(5):
        x = torch.randn(8, 4)
        for model, rule in ((ours, optimizer), (theirs, reference)):
            rule.zero_grad()
            model(x).square().sum().backward()
            rule.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_matrices_go_to_muon_and_the_named_rest_to_adamw():
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "conv": nn.Conv3d(4, 6, 3), "norm": nn.LayerNorm(4)})
    groups = build_optimizer(model, OptimizerConfig(), plain=("embedding",)).param_groups
    rules = {id(parameter): group["rule"] for group in groups for parameter in group["params"]}
    assert rules[id(model["conv"].weight)] == "muon"
    assert {rules[id(p)] for p in (model["conv"].bias, model["embedding"].weight, model["norm"].weight)} == {"adamw"}


def test_muon_learns_a_convolution():
    torch.manual_seed(0)
    model, target = nn.Conv3d(2, 4, 3), nn.Conv3d(2, 4, 3)
    optimizer = build_optimizer(model, OptimizerConfig())
    losses = []
    for step in range(80):
        x = torch.randn(4, 2, 4, 4, 4)
        loss = (model(x) - target(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.set_learning_rate(schedule(step, 80, warmup=5, final=0.02))
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_the_rate_rises_then_falls_along_a_cosine():
    rates = [schedule(step, 100, warmup=10, final=0.1) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


def test_the_average_starts_near_the_model_and_follows_it():
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.99)
    with torch.no_grad():
        model.weight.add_(1)
    before = average.weights["weight"].clone()
    average.update(model)
    torch.testing.assert_close(average.weights["weight"], before.lerp(model.weight, 0.9))
    for _ in range(3000):
        average.update(model)
    torch.testing.assert_close(average.weights["weight"], model.weight.detach(), atol=1e-4, rtol=0)
