"""range_attention in Triton: a program takes one tile of queries through its work list of key blocks.

    m' = max(m, max_j s_j),  l' = 2^(m - m') l + sum_j 2^(s_j - m'),  o' = 2^(m - m') o + sum_j 2^(s_j - m') v_j,
    s = log2(e) scale q k^T

Full blocks need no mask; partial ones carry a bit for each query and key (csrc/block_plan.h). Where few queries meet
many keys, each list is cut into a fixed number of parts, a group's heads share a tile, and a second kernel merges the
parts in order. Source as in `videoar_kernels.attention`. Not yet run on a GPU: tests interpret it and compile it ahead
of time.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from videoar_kernels.triton import attention_configs as configs
from videoar_kernels.triton.attention_blocks import finite, is_finite, load_rows, locate, seen, store_rows
from videoar_kernels.triton.attention_launch import (
    UNSPECIALISED,
    dense_rows,
    numerics,
    on_device,
    options,
    padded,
    section,
)
from videoar_kernels.triton.attention_plan import block_plan

LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2))
MERGED_ROWS = 16  # of a program of merge_kernel
MOST_PARTS = 64
LEAST_BLOCKS = 4  # of a part: fewer don't pay for merging


@triton.jit
def forward_step(acc, m, l, q, k, v, scale, visible, stain, F32: tl.constexpr):
    s = tl.dot(q, tl.trans(k), input_precision=F32)  # (M, BLOCK)
    if visible is None:
        m_new = tl.maximum(m, tl.max(s, 1) * scale)
        shrink = tl.exp2(m - m_new)
        p = tl.exp2(s * scale - m_new[:, None])
        acc = acc * shrink[:, None]
    else:
        s = tl.where(visible, s * scale, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        # A row that has seen no key yet must not compute inf - inf.
        base = tl.where(m_new == float("-inf"), 0.0, m_new)
        shrink = tl.exp2(m - base)
        p = tl.exp2(s - base[:, None])
        acc = acc * (shrink + stain)[:, None]
    l = l * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc, input_precision=F32)
    return acc, m_new, l


@triton.jit(do_not_specialize=UNSPECIALISED)
def forward_kernel(
    q, k, v, out, lse,
    tiles, tile_ptr, full, partial, patterns,
    scale, heads, group, most_tiles, section, flat_heads, sample_tiles, cuts,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    out_batch, out_head, out_token, out_part, lse_batch, lse_head, lse_part,
    D: tl.constexpr, COLUMNS: tl.constexpr, M: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    PACK: tl.constexpr, SPLIT: tl.constexpr, NEGATIVE: tl.constexpr, WIDEN: tl.constexpr, F32: tl.constexpr,
):  # fmt: skip
    """Programs run over heads: query heads, `group` of which share a key head, or with PACK > 1 key heads (group 1).

    The number of parts, `cuts`, changes as a cache grows, and only whether it is one (not SPLIT) tells the compiler.
    """
    if not SPLIT:
        cuts = 1  # known to the compiler: another number in registers would spill
    rank, flat = locate(most_tiles * cuts, flat_heads, section)
    part, rank = rank % cuts, rank // cuts
    sample, head = (flat // heads).to(tl.int64), (flat % heads).to(tl.int64)
    index = tl.load(tile_ptr + sample * sample_tiles) + rank
    if index >= tl.load(tile_ptr + sample * sample_tiles + 1):
        return
    tile = tiles + index.to(tl.int64) * 6
    begin = tl.load(tile).to(tl.int64)
    row = tl.arange(0, M)
    lane = row // PACK
    valid = (lane < TILE) & (begin + lane < tl.load(tile + 1))
    inner = (row % PACK).to(tl.int64)
    q_base = q + sample * q_batch + head * PACK * q_head + begin * q_token
    query = load_rows(q_base, lane * q_token + inner * q_head, valid, D, COLUMNS, WIDEN)  # (M, COLUMNS)
    if NEGATIVE:
        query = -query
    k_base = k + sample * k_batch + head // group * k_head
    v_base = v + sample * v_batch + head // group * v_head
    column = tl.arange(0, BLOCK)
    m = tl.full((M,), float("-inf"), tl.float32)
    l = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, COLUMNS), tl.float32)

    first, count = tl.load(tile + 2), tl.load(tile + 3) - tl.load(tile + 2)
    last = first + count * (part + 1) // cuts
    first += count * part // cuts
    ahead = tl.load(full + first)  # one block ahead: the loads that need it don't wait
    for i in tl.range(first, last):
        at = ahead.to(tl.int64)
        ahead = tl.load(full + i + 1)
        key = load_rows(k_base + at * k_token, column * k_token, None, D, COLUMNS, WIDEN)  # (BLOCK, COLUMNS)
        value = load_rows(v_base + at * v_token, column * v_token, None, D, COLUMNS, WIDEN)
        acc, m, l = forward_step(acc, m, l, query, key, value, scale, None, None, F32)

    first, count = tl.load(tile + 4), tl.load(tile + 5) - tl.load(tile + 4)
    for i in tl.range(first + count * part // cuts, first + count * (part + 1) // cuts, num_stages=1):
        at = tl.load(partial + i * 3).to(tl.int64)
        here = at + column < tl.load(partial + i * 3 + 1)
        visible = seen(patterns, tl.load(partial + i * 3 + 2), lane, TILE, BLOCK)
        value = load_rows(v_base + at * v_token, column * v_token, here, D, COLUMNS, WIDEN)
        # Values that aren't finite must not reach rows that don't see them as 0 * NaN, and must reach those that do.
        strange = tl.min(is_finite(value).to(tl.int32), 1) == 0
        stain = tl.where(tl.max((visible & strange[None, :]).to(tl.int32), 1) == 0, 0.0, float("nan"))
        value = finite(value)
        key = load_rows(k_base + at * k_token, column * k_token, here, D, COLUMNS, WIDEN)
        acc, m, l = forward_step(acc, m, l, query, key, value, scale, visible, stain, F32)

    acc = acc / tl.where(l == 0.0, 1.0, l)[:, None]
    out_base = out + part * out_part + sample * out_batch + head * PACK * out_head + begin * out_token
    store_rows(out_base, lane * out_token + inner * out_head, valid, acc, D, COLUMNS)
    lse_base = lse + part * lse_part + sample * lse_batch + head * PACK * lse_head + begin
    # A part's is in base 2, for merge_kernel.
    tl.store(lse_base + lane + inner * lse_head, (m + tl.log2(l)) * (1.0 if SPLIT else LN_2), mask=valid)


@triton.jit(do_not_specialize=UNSPECIALISED)
def merge_kernel(
    parts, part_lse, out, lse,
    cuts, rows, heads, q_len, out_batch, out_head, out_token,
    D: tl.constexpr, COLUMNS: tl.constexpr, MOST: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out = sum_p 2^(lse_p - lse) out_p over parts (cuts, rows, D), in order of p; a row is (batch, head, query)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = row < rows
    part = tl.arange(0, MOST)
    there = (part < cuts)[:, None] & valid[None, :]
    logs = tl.load(part_lse + part[:, None] * rows + row[None, :], mask=there, other=float("-inf"))  # (MOST, ROWS)
    m = tl.max(logs, 0)
    base = tl.where(m == float("-inf"), 0.0, m)
    l = tl.sum(tl.exp2(logs - base[None, :]), 0)
    log = base + tl.log2(l)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for p in tl.range(cuts):
        weight = tl.exp2(tl.load(part_lse + p * rows + row, mask=valid, other=float("-inf")) - base)
        x = load_rows(parts + p * rows * D, row * D, valid, D, COLUMNS, False)
        acc += x * weight[:, None]
    acc = acc / tl.where(l == 0.0, 1.0, l)[:, None]
    token, head = row % q_len, row // q_len
    offset = head // heads * out_batch + head % heads * out_head + token * out_token
    store_rows(out, offset, valid, acc, D, COLUMNS)
    tl.store(lse + row, log * LN_2, mask=valid)


def operator(q: Tensor, k: Tensor, v: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    """The registered operator: q, k, v, the mask's four arrays or None, scale -> out, lse."""
    batch, heads, q_len, head_dim = q.shape
    out = q.new_empty(batch, q_len, heads, head_dim).transpose(1, 2)
    return out, operator_out(q, k, v, *arguments, out)


def operator_out(q: Tensor, k: Tensor, v: Tensor, *arguments) -> Tensor:
    """The operator that writes into its last argument, out, and returns lse."""
    *mask, scale, out = arguments
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    if out.numel() > 0:
        with on_device(q):
            launch_forward(*(dense_rows(x) for x in (q, k, v)), mask, scale, out, lse)
    return lse


def launch_forward(q: Tensor, k: Tensor, v: Tensor, mask, scale: float, out: Tensor, lse: Tensor) -> None:
    batch, heads, q_len, head_dim = q.shape
    kv_heads, k_len = k.shape[1:3]
    family, processors = configs.device_family(q.device), configs.processors(q.device)
    columns = padded(head_dim)
    config = configs.config("forward", family, columns, q.element_size())
    rows, pack, parts = config.tile, 1, 1
    busy = batch * heads * triton.cdiv(q_len, rows) >= processors
    if not busy:
        config = configs.config("decode", family, columns, q.element_size())
        pack = heads // kv_heads if heads // kv_heads <= config.tile else 1
        rows = min(config.tile, max(16, triton.next_power_of_2(q_len * pack)))
    plan = block_plan(mask, q_len, k_len, rows // pack, config.block, q.device)
    program_heads, group = heads // pack, heads // pack // kv_heads
    if not busy:
        parts = parts_for(batch * program_heads * plan.most_tiles, plan.most_blocks, processors)
    target, target_lse = out, lse
    if parts > 1:
        target = q.new_empty(parts, batch, heads, q_len, head_dim, dtype=torch.float32)
        target_lse = q.new_empty(parts, batch, heads, q_len, dtype=torch.float32)
    forward_kernel[(batch * program_heads * plan.most_tiles * parts,)](
        q,
        k,
        v,
        target,
        target_lse,
        *plan.arrays,
        abs(scale) * LOG2_E.value,
        program_heads,
        group,
        plan.most_tiles,
        section(k, batch * program_heads, sharing=group),
        batch * program_heads,
        int(plan.samples > 1),
        parts,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *target.stride()[-4:-1],
        target.stride(0),
        *target_lse.stride()[-3:-1],
        target_lse.stride(0),
        D=head_dim,
        COLUMNS=columns,
        M=rows,
        TILE=rows // pack,
        BLOCK=config.block,
        PACK=pack,
        SPLIT=parts > 1,
        NEGATIVE=scale < 0,
        **numerics(q),
        **options(config),
    )
    if parts > 1:
        merge_kernel[(triton.cdiv(lse.numel(), MERGED_ROWS),)](
            target,
            target_lse,
            out,
            lse,
            parts,
            lse.numel(),
            heads,
            q_len,
            *out.stride()[:3],
            D=head_dim,
            COLUMNS=columns,
            MOST=MOST_PARTS,
            ROWS=MERGED_ROWS,
            num_warps=4,
            enable_fp_fusion=True,
        )


def parts_for(programs: int, blocks: int, processors: int) -> int:
    """Into how many parts, a power of two, to cut each list so that two programs run on every processor."""
    most = max(min(2 * processors // programs, blocks // LEAST_BLOCKS, MOST_PARTS), 1)
    return 1 << (most.bit_length() - 1)
