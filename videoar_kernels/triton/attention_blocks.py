"""What every attention kernel in Triton does with a tile and its blocks: find, load, mask and multiply."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def locate(tiles, heads, section):
    """Returns (tile rank, flat head) of this program.

    Heads come in sections small enough that their keys and values stay in the L2 cache; within a section all heads'
    longest tiles come first.
    """
    program = tl.program_id(0)
    here = program // (tiles * section) * section
    width = tl.minimum(section, heads - here)
    inside = program - here * tiles
    return inside // width, here + inside % width


@triton.jit
def load_rows(base, offset, valid, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, WIDEN: tl.constexpr):
    """Rows (N, COLUMNS) that start `offset` elements from base; zero beyond WIDTH and where invalid; None: none is."""
    column = tl.arange(0, COLUMNS)
    pointers = base + offset[:, None] + column[None, :]
    if valid is None:
        x = tl.load(pointers) if WIDTH == COLUMNS else tl.load(pointers, mask=column[None, :] < WIDTH, other=0.0)
    else:
        x = tl.load(pointers, mask=valid[:, None] & (column[None, :] < WIDTH), other=0.0)
    # The interpreter would multiply the bit patterns of bfloat16.
    return x.to(tl.float32) if WIDEN else x


@triton.jit
def store_rows(base, offset, valid, x, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    pointers = base + offset[:, None] + column[None, :]
    tl.store(pointers, x.to(base.dtype.element_ty), mask=valid[:, None] & (column[None, :] < WIDTH))


@triton.jit
def seen(patterns, pattern, lane, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Which of a block's columns each lane of the tile sees: bool (lanes, BLOCK)."""
    WORDS: tl.constexpr = (BLOCK + 31) // 32
    column = tl.arange(0, BLOCK)[None, :]
    # A lane's 32-bit words stand in pairs, (pair, lane, word of the pair).
    first = patterns + pattern.to(tl.int64) * ((BLOCK + 63) // 64 * 2 * TILE) + lane * 2
    word = tl.load(first, mask=lane < TILE, other=0)[:, None]
    for w in tl.static_range(1, WORDS):
        next_word = tl.load(first + (w // 2 * 2 * TILE + w % 2), mask=lane < TILE, other=0)[:, None]
        word = tl.where(column < 32 * w, word, next_word)
    return (word >> column % 32) & 1 != 0


@triton.jit
def is_finite(x):
    return tl.abs(x.to(tl.float32)) < float("inf")


@triton.jit
def finite(x):
    """x with zeros for what isn't finite.

    0 * NaN is NaN: where only some rows of a tile see a row of x, it must not reach the sums of the others.
    """
    return tl.where(is_finite(x), x, 0.0).to(x.dtype)
