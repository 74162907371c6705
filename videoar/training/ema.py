"""The running average of a model's weights, which is what one samples from."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of parameters; buffers are copied.

    Early steps count less: the decay of update n is min(decay, (1 + n) / (10 + n)).

    Args:
        model: whose weights are averaged.
        decay: the share that stays at each update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights = {name: x.detach().clone() for name, x in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, x in model.state_dict().items():
            if x.is_floating_point():
                self.weights[name].lerp_(x, 1 - decay)
            else:
                self.weights[name].copy_(x)

    def state_dict(self) -> dict[str, Tensor]:
        """The average and its count of updates."""
        return {**self.weights, "ema_updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes up what `state_dict` gave."""
        self.updates = int(state["ema_updates"])
        for name, x in self.weights.items():
            x.copy_(state[name])
