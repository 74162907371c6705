"""The pyramid in float64 numpy, written out with matrices: independent of the reference."""

from __future__ import annotations

import numpy as np
import philox_numpy
import torch


def area_matrix(n: int, m: int) -> np.ndarray:
    """(n, m): output i averages inputs floor(i m / n) up to ceil((i + 1) m / n)."""
    matrix = np.zeros((n, m))
    for i in range(n):
        begin, end = i * m // n, -(-(i + 1) * m // n)
        matrix[i, begin:end] = 1 / (end - begin)
    return matrix


def bilinear_matrix(m: int, n: int) -> np.ndarray:
    """(m, n): output i reads position (i + 1/2) n / m - 1/2, clamped to the first and last sample."""
    matrix = np.zeros((m, n))
    for i in range(m):
        position = min(max((i + 0.5) * n / m - 0.5, 0.0), n - 1.0)
        first = min(int(position), n - 1)
        second = min(first + 1, n - 1)
        matrix[i, first] += 1 - (position - first)
        matrix[i, second] += position - first
    return matrix


def down(x: np.ndarray, scale) -> np.ndarray:
    return np.einsum("ih,jw,...hwd->...ijd", area_matrix(scale[0], x.shape[-3]), area_matrix(scale[1], x.shape[-2]), x)


def up(x: np.ndarray, size) -> np.ndarray:
    rows, columns = bilinear_matrix(size[0], x.shape[-3]), bilinear_matrix(size[1], x.shape[-2])
    return np.einsum("hi,wj,...ijd->...hwd", rows, columns, x)


def encode64(z: np.ndarray, scales, flip_p=None, seed=0, offset=0, inherit=True):
    """Frame by frame: label bits and inputs (B, T, N, d), total, and the residuals (B, T, N, d) before the sign."""
    batch, frames, height, width, dim = z.shape
    tokens = sum(h * w for h, w in scales)
    flips = np.zeros((batch, frames, tokens, dim), bool)
    if flip_p is not None:
        counts = [h * w for h, w in scales]
        p = np.repeat(np.broadcast_to(flip_p, (batch, frames, len(scales))), counts, axis=2)
        flips = philox_numpy.uniform(flips.shape, seed, offset) < p[..., None]
    labels, inputs, residuals = np.zeros_like(flips), np.zeros(flips.shape), np.zeros(flips.shape)
    total = np.zeros_like(z)
    for b in range(batch):
        carried = np.zeros((height, width, dim))
        for t in range(frames):
            s, start = np.zeros((height, width, dim)), 0
            for k, (h, w) in enumerate(scales):
                tokens_k = slice(start, start + h * w)
                u = down(z[b, t] - s, (h, w)).reshape(h * w, dim)
                inputs[b, t, tokens_k] = down(carried if k == 0 else s, (h, w)).reshape(h * w, dim)
                labels[b, t, tokens_k], residuals[b, t, tokens_k] = u > 0, u
                used = labels[b, t, tokens_k] ^ flips[b, t, tokens_k]
                s = s + up(np.where(used, 1, -1).reshape(h, w, dim) / dim**0.5, (height, width))
                start += h * w
            total[b, t] = carried = s
            if not inherit and flip_p is not None:
                carried = encode64(z[b : b + 1, t : t + 1], scales)[2][0, 0]
    return tuple(torch.as_tensor(x) for x in (labels, inputs, total, residuals))
