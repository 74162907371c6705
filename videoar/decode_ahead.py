"""Pixels of latents as they come; on CUDA the decoder works on a stream beside the transformer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from videoar.observer import UNOBSERVED, Observer


class Decoded(Protocol):
    """What a decoder gives for a chunk of latents: pixels, and its state for the chunk after it."""

    video: Tensor
    state: Any


@torch.no_grad()
def decode_ahead(
    latents: Iterable[Tensor], decode_chunk: Callable[[Tensor, Any], Decoded], observer: Observer = UNOBSERVED
) -> Iterator[Tensor]:
    """Yield pixels (B, 3, n, H, W) in [-1, 1] of one chunk of latents after another.

    On CUDA a chunk's pixels are handed over when the next chunk's steps are queued: the two run side by side.

    Args:
        latents: chunks of one clip or stream in order, on the decoder's device, as `decode_chunk` takes them.
        decode_chunk: (chunk, state of the chunk before or None) to pixels and the next state.
        observer: sees the part "decode" of every chunk, on the stream it runs on.
    """
    state, queued = None, None
    beside = None
    for index, chunk in enumerate(latents):
        if not chunk.is_cuda:
            with observer.part("decode", frame=index):
                decoded = decode_chunk(chunk, state)
                state, pixels = decoded.state, decoded.video.clamp(-1, 1)
            yield pixels
            continue
        current = torch.cuda.current_stream(chunk.device)
        if queued is not None:
            yield _handed_over(queued, beside, current)
        beside = beside or _beside(chunk.device)
        beside.wait_stream(current)
        with torch.cuda.stream(beside), observer.part("decode", frame=index):
            decoded = decode_chunk(chunk, state)
            state, queued = decoded.state, decoded.video.clamp(-1, 1)
        chunk.record_stream(beside)
    if queued is not None:
        yield _handed_over(queued, beside, torch.cuda.current_stream(queued.device))


@cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    """The stream of all decoders on a device: PyTorch's allocator keeps memory apart for every stream it has seen."""
    return torch.cuda.Stream(device)


def _handed_over(pixels: Tensor, beside: torch.cuda.Stream, current: torch.cuda.Stream) -> Tensor:
    """Makes the current stream wait for pixels computed beside it."""
    current.wait_stream(beside)
    pixels.record_stream(current)
    return pixels
