"""Tile sizes of attention for each kind of GPU: data, chosen by registers, shared memory and instruction shapes.

None of them has been timed on a GPU yet; `pytest tests/kernels/test_attention_gpu.py` shows that each compiles without
spills and fits, with Triton 3.9. With 3.6 "keys" spills up to 120 bytes on sm_90; none is stored in its loops over
blocks, and with 128 columns none is read there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True)
class Config:
    """One way to launch a kernel: rows of a tile, columns of a block, warps, and stages of the software pipeline."""

    tile: int
    block: int
    warps: int
    stages: int


KERNELS = ("forward", "decode", "queries", "keys")
FAMILIES = (80, 86, 90, 100)  # compute capability from which a row holds
SHARED = {80: 163, 86: 99, 90: 227, 100: 227}  # KB of shared memory that a block may have

# (family, kernel) -> {padded head_dim: config} for two-byte elements. "decode": its tile is the smallest power of two
# that holds the queries, up to this one. "queries" and "keys" are the two passes of backward.
_TWO_BYTES: dict[tuple[int, str], dict[int, Config]] = {
    # mma.sync keeps operands in registers beside the accumulators: what fits without spills is small.
    (80, "forward"): {64: Config(128, 64, 8, 3), 128: Config(64, 32, 4, 3), 256: Config(64, 32, 8, 2)},
    (80, "decode"): {64: Config(64, 32, 4, 3), 128: Config(32, 32, 4, 3), 256: Config(32, 32, 8, 2)},
    (80, "queries"): {64: Config(64, 32, 4, 2), 128: Config(64, 64, 8, 2), 256: Config(32, 32, 8, 2)},
    (80, "keys"): {64: Config(128, 32, 8, 2), 128: Config(64, 64, 8, 2), 256: Config(32, 32, 8, 2)},
    # As sm_80, in 99 KB.
    (86, "forward"): {64: Config(128, 64, 8, 3), 128: Config(64, 32, 4, 3), 256: Config(64, 32, 8, 1)},
    (86, "decode"): {64: Config(64, 32, 4, 3), 128: Config(32, 32, 4, 3), 256: Config(32, 32, 8, 1)},
    (86, "queries"): {64: Config(64, 32, 4, 2), 128: Config(64, 64, 8, 2), 256: Config(32, 32, 8, 2)},
    (86, "keys"): {64: Config(64, 16, 8, 2), 128: Config(64, 64, 8, 2), 256: Config(32, 32, 8, 2)},
    # wgmma reads operands from shared memory: accumulators alone fill the registers, two groups of 4 warps share them.
    (90, "forward"): {64: Config(128, 128, 8, 3), 128: Config(128, 64, 8, 3), 256: Config(128, 32, 8, 2)},
    # Bytes in flight count: shared memory for two programs on a processor.
    (90, "decode"): {64: Config(64, 64, 4, 4), 128: Config(64, 64, 8, 3), 256: Config(32, 32, 4, 2)},
    (90, "queries"): {64: Config(128, 128, 8, 3), 128: Config(128, 64, 8, 3), 256: Config(128, 32, 8, 2)},
    (90, "keys"): {64: Config(128, 64, 8, 3), 128: Config(128, 32, 8, 3), 256: Config(32, 32, 8, 2)},
    # tcgen05 keeps accumulators in tensor memory.
    (100, "forward"): {64: Config(128, 128, 8, 3), 128: Config(128, 64, 8, 3), 256: Config(128, 32, 8, 2)},
    (100, "decode"): {64: Config(64, 64, 4, 4), 128: Config(64, 64, 8, 3), 256: Config(32, 32, 4, 2)},
    (100, "queries"): {64: Config(128, 128, 8, 3), 128: Config(128, 64, 8, 3), 256: Config(128, 32, 8, 2)},
    (100, "keys"): {64: Config(128, 64, 8, 3), 128: Config(64, 32, 8, 2), 256: Config(32, 32, 8, 2)},
}
# float32, three TF32 products for one: operands take twice the registers. 128 columns spill 16 bytes at most (sm_80),
# 256 columns more, whatever the tile.
_FOUR_BYTES: dict[str, dict[int, Config]] = {
    "forward": {64: Config(32, 32, 4, 2), 128: Config(32, 32, 8, 2), 256: Config(16, 16, 8, 1)},
    "decode": {64: Config(32, 32, 4, 2), 128: Config(16, 16, 4, 2), 256: Config(16, 16, 8, 1)},
    "queries": {64: Config(32, 32, 4, 1), 128: Config(16, 16, 4, 1), 256: Config(16, 16, 8, 1)},
    "keys": {64: Config(32, 32, 4, 1), 128: Config(16, 16, 4, 1), 256: Config(16, 16, 8, 1)},
}
# Here the usual one spills.
_FOUR_BYTES_OTHER = {(86, "keys", 64): Config(32, 16, 4, 1), (100, "queries", 64): Config(32, 16, 4, 1)}


def family(capability: int) -> int:
    """Returns the row of the tables for a compute capability such as 90; consumer Blackwell (120) is like 86."""
    if capability >= 120:
        return 86
    return max(f for f in FAMILIES if f <= max(capability, FAMILIES[0]))


def config(kernel: str, family: int, columns: int, element_size: int) -> Config:
    """Returns how to launch a kernel of KERNELS.

    Args:
        kernel: one of KERNELS.
        family: one of FAMILIES.
        columns: head_dim padded to a power of two.
        element_size: bytes of an element, 2 or 4.
    """
    columns = max(columns, 64)
    if element_size == 2:
        return _TWO_BYTES[family, kernel][columns]
    return _FOUR_BYTES_OTHER.get((family, kernel, columns), _FOUR_BYTES[kernel][columns])


@cache
def device_family(device: torch.device) -> int:
    """Returns the family of a device; the CPU, where kernels are interpreted, is the oldest."""
    if device.type != "cuda":
        return FAMILIES[0]
    major, minor = torch.cuda.get_device_capability(device)
    return family(10 * major + minor)


@cache
def processors(device: torch.device) -> int:
    """Returns the number of streaming multiprocessors; 4 stands for the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@cache
def l2_bytes(device: torch.device) -> int:
    """Returns the size of the L2 cache."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 1 << 25
