"""Small tokenizers whose every weight matters: fresh ones skip their blocks and would hide mistakes in them."""

from __future__ import annotations

import torch

from videoar.tokenizer import AutoencoderConfig, TokenizerConfig, VideoAutoencoder, VideoTokenizer

FOLDED = TokenizerConfig(
    bits=12,
    scales=((1, 1), (2, 2), (4, 4)),
    patch=(4, 4),
    channels=(8, 12, 16),
    strides=((1, 2), (1, 2)),
    blocks=1,
    time_kernels=((1, 1), (1, 3), (3, 1)),
)
PLAIN = TokenizerConfig(
    bits=12,
    scales=((1, 1), (2, 2), (4, 4)),
    channels=(6, 8, 8),
    strides=((1, 2), (2, 2)),
    blocks=1,
    time_kernels=((3, 3), (3, 1), (3, 3)),
    time_padding="zero",
)
THIRDS = TokenizerConfig(
    bits=9,
    scales=((1, 1), (3, 3)),
    patch=(2, 2),
    channels=(6, 8),
    strides=((3, 2),),
    blocks=1,
    time_kernels=((3, 1), (2, 4)),
)
SHUFFLED = TokenizerConfig(
    bits=9,
    scales=((1, 1), (2, 2)),
    patch=(1, 2),
    channels=(6, 8, 8),
    strides=((2, 2), (2, 2)),
    blocks=1,
    time_kernels=((1, 1), (3, 1), (3, 1)),
    shuffle=True,
)
CONFIGS = {"folded": FOLDED, "plain": PLAIN, "thirds": THIRDS, "shuffled": SHUFFLED}


def lively(
    config: TokenizerConfig | AutoencoderConfig, dtype: torch.dtype = torch.float32
) -> VideoTokenizer | VideoAutoencoder:
    """A tokenizer or autoencoder with random weights of lasting influence, in evaluation mode."""
    torch.manual_seed(0)
    model = (VideoTokenizer if isinstance(config, TokenizerConfig) else VideoAutoencoder)(config)
    for parameter in model.parameters():
        if parameter.ndim == 5:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.to(dtype).eval()
