"""The gradient of Symmetric DMD: as it is written, guided, at the levels of the paper, and towards the teacher.

Last: where it leads to, on Gaussians whose critics are exact.
"""

from __future__ import annotations

import pytest
import torch
from sharp_backbone import distance, draw
from torch import Tensor

from videoar.next_unit import NextUnitTransformer, cube, frame, preset
from videoar.next_unit.flow import add_noise, sampling_levels, shifted
from videoar.training.optimizer import OptimizerConfig
from videoar.training.score_difference import HIGHEST, LOWEST, guided_clean, matching_loss, score_gradient
from videoar.training.unit_dmd import DmdTraining, build_optimizers
from videoar.training.unit_dmd_objective import CRITICS, Prompts, SymmetricDmd, draw_judged


def test_the_gradient_is_the_written_one():
    generated, real, one, other = (draw(seed, 3, 4, 5) for seed in range(4))
    found = score_gradient(generated, real, [one, other])
    for sample in range(3):
        size = sum(abs(float(x)) for x in (generated[sample] - real[sample]).flatten()) / 20
        expected = ((one[sample] + other[sample]) / 2 - real[sample]) / size
        torch.testing.assert_close(found[sample], expected)
    generated.requires_grad_()
    matching_loss(generated, found).backward()
    torch.testing.assert_close(generated.grad, found / generated.numel())


def test_a_clip_that_the_teacher_would_not_change_has_a_finite_gradient():
    clip = draw(0, 2, 3, 4)
    assert torch.equal(score_gradient(clip, clip, [clip]), torch.zeros_like(clip))
    assert score_gradient(clip, clip, [clip + 1]).isfinite().all()


def test_a_model_that_gives_nan_is_seen():
    clip, wrong = draw(0, 2, 3, 4), draw(1, 2, 3, 4)
    wrong[1, 0, 0] = float("nan")
    assert score_gradient(clip, wrong, [clip])[1].isnan().all()
    assert score_gradient(clip, draw(2, 2, 3, 4), [clip, wrong])[1, 0, 0].isnan()


class Gaussian(torch.nn.Module):
    """The exact flow of clips that are N(mean, deviation^2); without a prompt the mean is 0."""

    def __init__(self, mean: float, deviation: float = 0.5) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor, layout, *, direction: str) -> Tensor:
        assert direction == "full"
        level = (timesteps / 1000)[:, None, None].to(noisy)
        mean = self.mean * (text.abs().amax((1, 2), keepdim=True) > 0)
        variance = ((1 - level) * self.deviation) ** 2 + level**2
        clean = mean + (1 - level) * self.deviation**2 / variance * (noisy - (1 - level) * mean)
        return (noisy - clean) / level


def test_guidance_is_uncond_plus_scale_times_the_difference():
    noisy, levels = draw(0, 3, 4, 5), torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64)
    text, none = torch.ones(3, 2, 6), torch.zeros(1, 2, 6)
    found = [guided_clean(Gaussian(2.0), noisy, levels, text, none, None, scale) for scale in (0.0, 1.0, 4.0)]
    torch.testing.assert_close(found[2], found[0] + 4 * (found[1] - found[0]))
    plain = guided_clean(Gaussian(0.0), noisy, levels, text, none, None, 1.0)
    assert distance(found[0], plain) < 1e-12 < 1e-2 < distance(found[1], plain)


def toy(critics: str) -> SymmetricDmd:
    """One token of two numbers; the generator starts as N(0, 1)."""
    shape = preset("tiny", width=16, depth=1, heads=1, ffn_width=32, channels=2, freq_dim=16, patch=(1, 1, 1))
    torch.manual_seed(0)
    parts = {way: NextUnitTransformer(shape) for way in CRITICS[critics]}
    return SymmetricDmd(NextUnitTransformer(shape), parts, cube(1, 1, 1).on((1, 1, 1)), sampling_levels(1))


def distilled_mean(teacher: Gaussian, critics: str = "full", steps: int = 50, batch: int = 32) -> float:
    """The mean of what the toy generates after some steps."""
    objective = toy(critics)
    how = OptimizerConfig("adamw", 1e-2, betas=(0.0, 0.999))
    optimizer = build_optimizers(DmdTraining(generator=how, critic=how), objective)
    optimizer.set_learning_rate(1.0)
    generator = torch.Generator().manual_seed(0)
    prompts = Prompts(torch.ones(batch, 1, 24), torch.zeros(1, 1, 24))
    for _ in range(steps):
        for kind in ("critic", "generator"):
            noise = torch.randn(1, batch, 1, 2, generator=generator)
            judged = draw_judged(batch, objective.layout, 2, 3.0, generator)
            made = objective.clips(prompts, noise) if kind == "critic" else objective.roll_out(prompts, noise)
            objective(made, prompts, judged, teacher)[0].backward()
            optimizer.step()
            optimizer.zero_grad()
    noise = torch.randn(1, 512, 1, 2, generator=generator)
    return float(objective.clips(Prompts(torch.ones(512, 1, 24), prompts.uncond), noise).mean())


def test_the_generator_moves_to_where_the_teacher_is():
    moved, stays = distilled_mean(Gaussian(2.0)), distilled_mean(Gaussian(0.0, deviation=1.0))
    assert moved > 1.2 and abs(stays) < 0.4, (moved, stays)


def test_levels_are_clamped_shifted_and_one_a_clip():
    layout = cube().on((3, 2, 2))
    levels = draw_judged(1000, layout, 3, 5.0, torch.Generator().manual_seed(0)).levels
    assert levels.shape == (1000,) and levels.min() == 0.02 and levels.max() == 0.98
    assert abs(float((levels < 5 / 6).double().mean()) - 0.5) < 2e-3  # 5 u / (1 + 4 u) at u = 1/2


UNITS, SAMPLES = 3, 8
REAL = 0.9 ** (torch.arange(UNITS)[:, None] - torch.arange(UNITS)).abs().double()  # covariance of the real units
JUDGED = shifted((torch.arange(6).double() + 0.5) / 6, 3.0).clamp(LOWEST, HIGHEST)[:, None, None]


def signs() -> tuple[Tensor, Tensor]:
    """Two sets of 3 x 8 numbers whose second moments are those of independent standard normal ones, exactly.

    All maps here are linear, so what they give on these is what they give on the whole distribution.
    """
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    rows = torch.kron(pair, torch.kron(pair, pair))[1:]
    return rows[:UNITS], rows[UNITS : 2 * UNITS]


def best_clean(covariance: Tensor, noisy: Tensor, direction: str) -> Tensor:
    """E[x_0 of a unit | the noisy units that it sees], of Gaussian units, for noisy (levels, units, samples)."""
    sees = frame().on((UNITS, 1, 1)).mask(direction).to_dense().double()  # (unit, seen)
    noised = (1 - JUDGED) ** 2 * covariance + JUDGED**2 * torch.eye(UNITS, dtype=torch.float64)
    among_seen = noised[:, None] * sees[:, :, None] * sees[:, None] + torch.diag_embed(1 - sees)
    weights = torch.linalg.solve(among_seen, ((1 - JUDGED) * covariance * sees)[..., None])[..., 0]
    return weights @ noisy


def moved_gaussian(critics: str, generator: Tensor, moves: int) -> tuple[float, float]:
    """Mean variance of the units, and correlation of the first two, of a causal linear generator after some moves."""
    inputs, noise = signs()
    for _ in range(moves):
        clips = (generator @ inputs).expand(len(JUDGED), -1, -1)
        noisy = add_noise(clips, noise, JUDGED)
        fakes = [best_clean(generator @ generator.T, noisy, way) for way in CRITICS[critics]]
        gradient = score_gradient(clips, best_clean(REAL, noisy, "full"), fakes)
        generator = generator - 0.1 * (gradient @ inputs.T / SAMPLES).mean(0).tril()
    made = generator @ generator.T
    return float(made.diagonal().mean()), float(made[0, 1] / (made[0, 0] * made[1, 1]).sqrt())


@pytest.mark.parametrize(
    ("critics", "variance", "correlation"),
    [("full", 1.0, 0.9), ("forward", 1.297, 0.882), ("backward", 1.373, 0.998), ("both", 1.405, 0.954)],
)
def test_from_the_real_distribution_causal_fakes_move_away_and_a_full_one_stays(critics, variance, correlation):
    """The real score reads every unit and a causal fake one side of it, so equal distributions have unequal scores.

    With exact critics and a generator that already makes the real distribution, variance 1 and correlation 0.9, the
    gradient with a full fake is zero. With the mean of forward and backward fakes, units become larger and more alike:
    what Symmetric DMD leads to is not the real distribution.
    """
    found = moved_gaussian(critics, torch.linalg.cholesky(REAL), 50)
    exact = 1e-9 if critics == "full" else 5e-3
    assert found == pytest.approx((variance, correlation), abs=exact)


def test_a_full_fake_leads_to_the_real_distribution():
    assert moved_gaussian("full", torch.eye(UNITS, dtype=torch.float64), 200) == pytest.approx((1.0, 0.9), abs=0.02)
