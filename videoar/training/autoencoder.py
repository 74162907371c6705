"""Training of the continuous autoencoder: a Gaussian channel of fixed noise between encoder and decoder.

    mu = encoder(video),  loss = pixel loss of decoder(mu + noise * e) + power * mean(mu^2),  e ~ N(0, 1)

The posterior of a VAE of one fixed variance: noise makes the decoder forgive what a generator gets wrong, the price on
power keeps the latents as small as the noise allows. At the end latents are scaled to unit variance. Source: Kingma and
Welling 2014; paper U uses Wan's, which is far too large for sprites.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from videoar.data.sprites import SpriteConfig
from videoar.evaluation.tokenizer import evaluate_autoencoder
from videoar.model_folder import load_model_folder
from videoar.tokenizer.autoencoder import VideoAutoencoder
from videoar.tokenizer.config import AutoencoderConfig
from videoar.tokenizer.losses import PixelLossConfig, reconstruction_loss
from videoar.training.clips import clip_batches
from videoar.training.stages import StagedTraining, run_stages


@dataclass(frozen=True)
class AutoencoderTraining(StagedTraining):
    """An autoencoder run; the model goes to `autoencoder/`.

    Args:
        start: folder of a tokenizer or autoencoder whose weights are taken up where name and shape agree.
        model, loss: the parts.
        noise: standard deviation of the channel's noise.
        power: price of the latents' mean square.
        calibration: batches of 32 clips from which the latents' mean and variance are taken.
    """

    output: str = "runs/autoencoder"
    start: str | None = None
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    loss: PixelLossConfig = field(default_factory=PixelLossConfig)
    noise: float = 0.2
    power: float = 1e-3
    calibration: int = 8


class AutoencoderObjective(nn.Module):
    """Video to loss."""

    def __init__(self, autoencoder: VideoAutoencoder, config: AutoencoderTraining) -> None:
        super().__init__()
        self.autoencoder, self.config = autoencoder, config

    def forward(self, video: Tensor, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        mean = self.autoencoder.encode(video)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed)).to(mean)
        output = self.autoencoder.decode(mean + self.config.noise * noise)
        terms = {
            "reconstruction": reconstruction_loss(output, video, self.config.loss),
            "power": mean.square().mean(),
        }
        return terms["reconstruction"] + self.config.power * terms["power"], {k: x.detach() for k, x in terms.items()}


def train(config: AutoencoderTraining) -> Path:
    """Run (or resume) a training and return the folder of the trained autoencoder."""
    torch.manual_seed(config.seed)
    autoencoder = VideoAutoencoder(config.model)
    if config.start is not None:
        _take_up(autoencoder, config.start)
    objective = AutoencoderObjective(autoencoder, config)
    accelerator, weights = run_stages(
        config,
        objective,
        autoencoder,
        drawn=lambda step, rank: (config.step_seed(step, rank),),
        fixed=("encoder",),
        measure=lambda weights: _measure(_autoencoder(weights, config), config),
    )
    folder = Path(config.output) / "autoencoder"
    if accelerator.is_main_process:
        found = _autoencoder(weights, config)
        draw = clip_batches(config.data, 32, config.seed)
        found.calibrate(draw(step) for step in range(config.calibration))
        found.save_pretrained(folder, dtype=getattr(torch, config.stored_as))
    return folder


def _take_up(autoencoder: VideoAutoencoder, folder: str) -> None:
    own = autoencoder.state_dict()
    _, state = load_model_folder(folder)
    agreeing = {name: x for name, x in state.items() if name in own and x.shape == own[name].shape}
    if not agreeing:
        raise ValueError(f"start: expected weights of the same network, got none that fit in {folder}")
    own.update({name: x for name, x in agreeing.items() if not name.startswith("latent_")})
    autoencoder.load_state_dict(own)


def _autoencoder(weights: Mapping[str, Tensor], config: AutoencoderTraining) -> VideoAutoencoder:
    autoencoder = VideoAutoencoder(config.model)
    autoencoder.load_state_dict(weights)
    return autoencoder.eval()


def _measure(autoencoder: VideoAutoencoder, config: AutoencoderTraining) -> dict[str, float]:
    sprites: SpriteConfig = replace(config.data, frames=17).sprites
    report = evaluate_autoencoder(autoencoder, clips=config.evaluation_clips, sprites=sprites, noise=config.noise)
    return {"psnr": report.psnr, "foreground_psnr": report.foreground_psnr, **report.attributes}
