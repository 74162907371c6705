"""Philox 4x32-10 written once more, in numpy and from the paper: what the package's generator is compared with."""

from __future__ import annotations

import math

import numpy as np

MASK32 = (1 << 32) - 1


def block(counter: int, key: int) -> list[int]:
    """One block in Python integers: a 128-bit counter, a 64-bit key, four words out."""
    c = [(counter >> (32 * i)) & MASK32 for i in range(4)]
    k = [key & MASK32, (key >> 32) & MASK32]
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(right >> 32) ^ c[1] ^ k[0], right & MASK32, (left >> 32) ^ c[3] ^ k[1], left & MASK32]
        k = [(k[0] + 0x9E3779B9) & MASK32, (k[1] + 0xBB67AE85) & MASK32]
    return c


def words(n: int, seed: int, offset: int = 0, first: int = 0) -> np.ndarray:
    """Words of elements `first` to `first + n`, uint32."""
    index = np.arange(first, first + n, dtype=np.uint64)
    c = [
        (index // 4) & MASK32,
        (index // 4) >> 32,
        np.full(n, offset & MASK32, np.uint64),
        np.full(n, (offset >> 32) & MASK32, np.uint64),
    ]
    c = [x.astype(np.uint64) for x in c]
    k = [seed & MASK32, (seed >> 32) & MASK32]
    for _ in range(10):
        left, right = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        low = np.uint64(MASK32)
        c = [
            (right >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            right & low,
            (left >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            left & low,
        ]
        k = [(k[0] + 0x9E3779B9) & MASK32, (k[1] + 0xBB67AE85) & MASK32]
    return np.stack(c)[index % 4, np.arange(n)].astype(np.uint32)


def uniform(shape: tuple[int, ...], seed: int, offset: int = 0) -> np.ndarray:
    """float64, exact multiples of 2^-24."""
    return ((words(math.prod(shape), seed, offset) >> 8) * 2.0**-24).reshape(shape)
