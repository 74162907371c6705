"""Pixels of decoded frames; on CUDA the tokenizer works on a stream beside the transformer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from videoar.next_scale.observer import UNOBSERVED, Observer
from videoar.next_scale.sampling import DecodedFrame
from videoar.tokenizer import VideoTokenizer


@torch.no_grad()
def decode_ahead(
    frames: Iterable[DecodedFrame], tokenizer: VideoTokenizer, observer: Observer = UNOBSERVED
) -> Iterator[Tensor]:
    """Yield pixels (B, 3, n, H, W) in [-1, 1] of one latent frame after another.

    On CUDA a frame's pixels are handed over when the next frame's steps are queued: the two run side by side.

    Args:
        frames: latent frames in order, on the tokenizer's device.
        tokenizer: decodes them.
        observer: sees the part "decode" of every frame, on the stream it runs on.
    """
    state, queued = None, None
    beside = None
    for index, frame in enumerate(frames):
        if not frame.total.is_cuda:
            with observer.part("decode", frame=index):
                chunk = tokenizer.decode_chunk(frame.total[:, None], state)
                state, pixels = chunk.state, chunk.video.clamp(-1, 1)
            yield pixels
            continue
        current = torch.cuda.current_stream(frame.total.device)
        if queued is not None:
            yield _handed_over(queued, beside, current)
        beside = beside or torch.cuda.Stream(frame.total.device)
        beside.wait_stream(current)
        with torch.cuda.stream(beside), observer.part("decode", frame=index):
            chunk = tokenizer.decode_chunk(frame.total[:, None], state)
            state, queued = chunk.state, chunk.video.clamp(-1, 1)
        frame.total.record_stream(beside)
    if queued is not None:
        yield _handed_over(queued, beside, torch.cuda.current_stream(queued.device))


def _handed_over(pixels: Tensor, beside: torch.cuda.Stream, current: torch.cuda.Stream) -> Tensor:
    """Makes the current stream wait for pixels computed beside it."""
    current.wait_stream(beside)
    pixels.record_stream(current)
    return pixels
