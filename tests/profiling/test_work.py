"""FLOPs and bytes counted from the configuration, against PyTorch's counter and by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from videoar.next_scale.config import TransformerConfig, preset
from videoar.profiling.eager_model import EagerTransformer
from videoar.profiling.random_weights import random_transformer
from videoar.profiling.work import TransformerWork, Work, decoder_work
from videoar.tokenizer import TokenizerConfig, VideoTokenizer

CONFIGS = {
    "pooled text": preset("tiny"),
    "paper": preset("tiny", context="paper", pooled_text=False),
    "grouped": preset("tiny", kv_heads=1, text_len=1, scales=((1, 1), (2, 3), (3, 4))),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_transformer_flops_are_those_that_pytorch_counts(config):
    rows, frames = 3, config.frames
    work = TransformerWork(config, rows, weight_bytes=4, cache_bytes=4)
    twin = EagerTransformer(random_transformer(config))
    text = torch.randn(rows, config.text_len, config.text_width)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            cache = twin.prefill(text)
        assert work.text().flops == counter.get_total_flops()
        for step in work.steps(frames):
            inputs, context = torch.randn(2, rows, step.tokens, config.bits).unbind(0)
            with FlopCounterMode(display=False) as counter:
                twin.step(text, inputs, context, cache, frame=step.frame, scale=step.scale)
            assert step.work.flops == counter.get_total_flops(), (step.frame, step.scale)


def test_transformer_bytes_by_hand():
    config = TransformerConfig(width=8, depth=3, heads=2, kv_heads=1, bits=4, text_len=2, text_width=6, context="paper")
    assert config.ffn_width == 32
    block = 8 * (2 + 1 + 1) * 4 + 8 * 8 + 3 * 8 * 32
    (first, *_) = TransformerWork(config, 2, weight_bytes=2, cache_bytes=4).steps(1)
    cache = 2 * 2 * (3 + 1) * 1 * 4 * 3  # keys and values, rows, read 3 and write 1, one head of 4, three layers
    assert first.seen == 3
    assert first.work.bytes == 2 * (3 * block + 4 * 8 + 8 * 4) + 4 * cache


def test_steps_see_text_kept_frames_and_their_own_scales():
    config = preset("tiny", window=1)
    seen = [step.seen for step in TransformerWork(config, 1, weight_bytes=2, cache_bytes=2).steps(4)]
    assert seen == [5, 9, 10, 14, 10, 14, 10, 14]
    whole = [step.seen for step in TransformerWork(preset("tiny"), 1, weight_bytes=2, cache_bytes=2).steps(4)]
    assert whole == [5, 9, 10, 14, 15, 19, 20, 24]


def test_weights_counted_are_those_of_the_model():
    config = preset("tiny")
    model = random_transformer(config)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "scale_embedding" not in name)
    biases_and_text = config.text_width * config.width  # the text's own layer runs once, in the prefix
    work = TransformerWork(config, 1, weight_bytes=1, cache_bytes=0)
    assert work.steps(1)[0].work.bytes == matrices - biases_and_text


@pytest.mark.parametrize("shuffle", [False, True])
@torch.no_grad()
def test_decoder_flops_are_those_that_pytorch_counts(shuffle):
    config = TokenizerConfig(
        bits=8, scales=((1, 1), (2, 2)), channels=(8, 16, 16), strides=((2, 2), (2, 2)), blocks=1, shuffle=shuffle,
        time_kernels=((3, 1), (1, 1), (3, 3)),
    )  # fmt: skip
    works = decoder_work(config, 4, 2, element_bytes=4)
    tokenizer, state = VideoTokenizer(config), None
    for work in works:
        with FlopCounterMode(display=False) as counter:
            state = tokenizer.decode_chunk(torch.randn(2, 1, 2, 2, 8), state).state
        assert work.flops == counter.get_total_flops()
    assert works[1] == works[3] and works[0].flops < works[1].flops


def test_decoder_bytes_by_hand():
    config = TokenizerConfig(
        bits=4, scales=((2, 2),), patch=(1, 1), channels=(8,), strides=(), blocks=0, time_kernels=((1, 1),)
    )
    (work,) = decoder_work(config, 1, 1, element_bytes=2)
    cells = 2 * 2
    first = 8 * 4 * 9 + cells * (4 + 8)
    residual = 2 * (8 * 8 * 9 + cells * (8 + 8))
    last = 3 * 8 * 9 + cells * (8 + 3)
    assert work.bytes == 2 * (first + residual + last)


def test_the_floor_is_the_slower_of_arithmetic_and_memory():
    assert Work(10, 6).floor(5, 2) == 3 and Work(10, 6).floor(2, 6) == 5
    assert sum([Work(1, 2), Work(3, 4)], Work()) == Work(4, 6)
