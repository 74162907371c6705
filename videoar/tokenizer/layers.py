"""Causal 3D layers whose memory of the past is an explicit value.

A convolution over time needs the last frames of its input again when the next chunk arrives. Those tails are not
kept on the module: a `Tails` object hands each layer its own, in call order, and collects the new ones, so that a
network's state is a plain tuple that belongs to one stream. Any chunking gives the result of the whole clip.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Tails:
    """The frames every causal layer still needs, in call order.

    Args:
        state: the `collect()` of the previous chunk; None at the start of a stream.
    """

    def __init__(self, state: tuple[Tensor, ...] | None = None) -> None:
        self.first = state is None
        self._old = iter(state or ())
        self._new: list[Tensor] = []

    def extend(self, x: Tensor, before: int, padding: str) -> Tensor:
        """Prepends the tail that this layer left, or `before` frames of padding at the start of the stream."""
        if not self.first:
            return torch.cat((next(self._old), x), 2)
        if before == 0:
            return x
        edge = x[:, :, :1] if padding == "replicate" else torch.zeros_like(x[:, :, :1])
        return torch.cat((edge.expand(-1, -1, before, -1, -1), x), 2)

    def keep(self, x: Tensor) -> None:
        """Leaves frames for this layer's next chunk."""
        self._new.append(x)

    def collect(self) -> tuple[Tensor, ...]:
        """The state after this chunk."""
        return tuple(self._new)


def channels_last(x: Tensor) -> Tensor:
    """The same values in the layout that the convolutions are fastest in."""
    return x.contiguous(memory_format=torch.channels_last_3d)


class CausalConv3d(nn.Module):
    """3D convolution that sees this frame and earlier ones, centred in space.

    Args:
        inputs: input channels.
        outputs: output channels.
        kernel: extent in (time, space).
        stride: stride in (time, space); output j of a stream ends at input frame j * stride.
        padding: `"replicate"` or `"zero"`, what precedes the stream.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        *,
        stride: tuple[int, int] = (1, 1),
        padding: str = "replicate",
    ) -> None:
        super().__init__()
        (time, space), (time_stride, space_stride) = kernel, stride
        if time < time_stride:
            raise ValueError(
                f"CausalConv3d: expected a temporal kernel of at least the stride {time_stride}, got {time}"
            )
        self.time, self.time_stride, self.padding = time, time_stride, padding
        self.space_padding = space // 2
        self.stride = (time_stride, space_stride, space_stride)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, time, space, space))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.weight, std=(inputs * time * space * space) ** -0.5)

    def forward(self, x: Tensor, tails: Tails) -> Tensor:
        if self.time > 1:
            x = tails.extend(x, self.time - 1, self.padding)  # (B, C, tail + T, H, W)
            steps = max(0, (x.shape[2] - self.time) // self.time_stride + 1)
            tails.keep(x[:, :, steps * self.time_stride :])
        else:
            steps = x.shape[2]
        if steps == 0:  # a strided layer that waits for more frames
            space = [-(-size // self.stride[1]) for size in x.shape[3:]]
            return x.new_empty(x.shape[0], self.weight.shape[0], 0, *space)
        padding = (0, self.space_padding, self.space_padding)
        return F.conv3d(x, self.weight, self.bias, self.stride, padding)


class FrameNorm(nn.Module):
    """RMS norm over the channels of each position: no statistics cross time or space."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.movedim(1, -1), (x.shape[1],), self.weight, 1e-6).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, twice, around a skip."""

    def __init__(self, channels: int, time: tuple[int, int], padding: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = FrameNorm(channels), FrameNorm(channels)
        self.conv1 = CausalConv3d(channels, channels, (time[0], 3), padding=padding)
        self.conv2 = CausalConv3d(channels, channels, (time[1], 3), padding=padding)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, tails: Tails) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)), tails)
        return x + self.conv2(F.silu(self.norm2(y)), tails)


class Downsample(nn.Module):
    """Strided convolution; in time it keeps frames 0, stride, 2 stride, ..."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int], padding: str) -> None:
        super().__init__()
        kernel = (2 * stride[0] - 1, 3)
        self.conv = CausalConv3d(inputs, outputs, kernel, stride=stride, padding=padding)

    def forward(self, x: Tensor, tails: Tails) -> Tensor:
        return self.conv(x, tails)


class Upsample(nn.Module):
    """Nearest upsampling, then a convolution; a stream's first frame is not repeated in time (T -> s T - s + 1)."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int], padding: str) -> None:
        super().__init__()
        self.stride = stride
        self.conv = CausalConv3d(inputs, outputs, (3 if stride[0] > 1 else 1, 3), padding=padding)

    def forward(self, x: Tensor, tails: Tails) -> Tensor:
        time, space = self.stride
        if time > 1:
            x = x.repeat_interleave(time, 2)
            x = x[:, :, time - 1 :] if tails.first else x
        if space > 1:
            x = x.repeat_interleave(space, 3).repeat_interleave(space, 4)
        return self.conv(channels_last(x), tails)


class ShuffleDownsample(nn.Module):
    """Strided convolution beside a shortcut without weights: squares and frames into channels, channels averaged.

    Source: DC-AE's residual autoencoding (Chen et al., 2024), causal in time.
    """

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int], padding: str) -> None:
        super().__init__()
        _check_groups(inputs * stride[0] * stride[1] ** 2, outputs)
        self.stride, self.padding, self.outputs = stride, padding, outputs
        self.conv = CausalConv3d(inputs, outputs, (2 * stride[0] - 1, 3), stride=stride, padding=padding)

    def forward(self, x: Tensor, tails: Tails) -> Tensor:
        shortcut = patchify(x, self.stride, tails, self.padding)
        return self.conv(x, tails) + shortcut.unflatten(1, (self.outputs, -1)).mean(2)


class ShuffleUpsample(nn.Module):
    """Channels into squares and frames after a pointwise convolution, beside a shortcut that repeats channels."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int], padding: str) -> None:
        super().__init__()
        unfolded = outputs * stride[0] * stride[1] ** 2
        _check_groups(unfolded, inputs)
        self.stride, self.repeats = stride, unfolded // inputs
        self.conv = CausalConv3d(inputs, unfolded, (1, 1), padding=padding)

    def forward(self, x: Tensor, tails: Tails) -> Tensor:
        x = self.conv(x, tails) + x.repeat_interleave(self.repeats, 1)
        return channels_last(unpatchify(x, self.stride, tails))


def _check_groups(folded: int, channels: int) -> None:
    if folded % channels:
        raise ValueError(f"shuffle resampling: expected {folded} folded channels to be a multiple of {channels}")


def patchify(x: Tensor, patch: tuple[int, int], tails: Tails, padding: str) -> Tensor:
    """Folds groups of frames and squares of pixels into channels: (B, C, T, H, W) -> (B, C t s s, T / t, H / s, W / s).

    The first frame is a group of its own, filled up on the left.
    """
    time, space = patch
    if time > 1:
        x = tails.extend(x, time - 1, padding)
        whole = x.shape[2] - x.shape[2] % time
        tails.keep(x[:, :, whole:])
        x = x[:, :, :whole]
    if patch == (1, 1):
        return x
    batch, channels, frames, height, width = x.shape
    x = x.reshape(batch, channels, frames // time, time, height // space, space, width // space, space)
    x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)  # (B, T / t, H / s, W / s, C t s s)
    return x.movedim(-1, 1)


def unpatchify(x: Tensor, patch: tuple[int, int], tails: Tails) -> Tensor:
    """Inverse of `patchify`; the fill-up of the first group is dropped."""
    time, space = patch
    if patch == (1, 1):
        return x
    batch, _, frames, height, width = x.shape
    x = x.movedim(1, -1).unflatten(-1, (-1, time, space, space))  # (B, T, H, W, C, t, s, s)
    x = x.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(batch, -1, frames * time, height * space, width * space)
    return x[:, :, time - 1 :] if tails.first else x
