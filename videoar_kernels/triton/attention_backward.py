"""Gradients of range_attention in Triton: one pass by tiles of queries, one by tiles of keys, no atomics.

    p = exp(scale q k^T - lse),  ds = p (dout v^T - delta),  delta = sum(out dout) - dlse,
    dq = scale ds k,  dk = scale ds^T q,  dv = p^T dout

Every sum runs over the work list in order, so the same inputs give the same bits. Source as in
`videoar_kernels.attention`. Not yet run on a GPU: tests interpret it and compile it ahead of time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from videoar_kernels.triton import attention_configs as configs
from videoar_kernels.triton.attention import LOG2_E
from videoar_kernels.triton.attention_blocks import finite, load_rows, locate, seen, store_rows
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


@triton.jit
def queries_step(acc, q, grad, log, delta, k, v, scale, visible, F32: tl.constexpr):
    s = tl.dot(q, tl.trans(k), input_precision=F32)  # (TILE, BLOCK)
    dp = tl.dot(grad, tl.trans(v), input_precision=F32)
    ds = tl.exp2(s * scale - log[:, None]) * (dp - delta[:, None])
    if visible is not None:
        ds = tl.where(visible, ds, 0.0)
    return tl.dot(ds.to(k.dtype), k, acc, input_precision=F32)


@triton.jit(do_not_specialize=UNSPECIALISED)
def queries_kernel(
    q, k, v, out, grad_out, lse, grad_lse, delta, grad_q,
    tiles, tile_ptr, full, partial, patterns,
    scale, heads, group, q_len, most_tiles, section, flat_heads, sample_tiles,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    out_batch, out_head, out_token, grad_batch, grad_head, grad_token, dq_batch, dq_head, dq_token,
    D: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, LSE_GRAD: tl.constexpr,
    WIDEN: tl.constexpr, F32: tl.constexpr,
):  # fmt: skip
    """grad_q of a tile of queries, and their delta for keys_kernel."""
    rank, flat = locate(most_tiles, flat_heads, section)
    sample, head = (flat // heads).to(tl.int64), (flat % heads).to(tl.int64)
    index = tl.load(tile_ptr + sample * sample_tiles) + rank
    if index >= tl.load(tile_ptr + sample * sample_tiles + 1):
        return
    tile = tiles + index.to(tl.int64) * 6
    begin = tl.load(tile).to(tl.int64)
    row = tl.arange(0, TILE)
    valid = begin + row < tl.load(tile + 1)
    numbers = flat.to(tl.int64) * q_len + begin + row  # in lse and delta
    query = load_rows(
        q + sample * q_batch + head * q_head + begin * q_token, row * q_token, valid, D, COLUMNS, WIDEN
    )  # (TILE, COLUMNS)
    grad = load_rows(
        grad_out + sample * grad_batch + head * grad_head + begin * grad_token, row * grad_token, valid, D, COLUMNS,
        WIDEN,
    )  # fmt: skip
    result = load_rows(
        out + sample * out_batch + head * out_head + begin * out_token, row * out_token, valid, D, COLUMNS, WIDEN
    )
    dot = tl.sum(result.to(tl.float32) * grad.to(tl.float32), 1)
    if LSE_GRAD:
        dot -= tl.load(grad_lse + numbers, mask=valid, other=0.0)
    tl.store(delta + numbers, dot, mask=valid)
    log = tl.load(lse + numbers, mask=valid, other=0.0) * LOG2_E
    k_base = k + sample * k_batch + head // group * k_head
    v_base = v + sample * v_batch + head // group * v_head
    column = tl.arange(0, BLOCK)
    score_scale = scale * LOG2_E
    acc = tl.zeros((TILE, COLUMNS), tl.float32)

    first = tl.load(tile + 2)
    ahead = tl.load(full + first)
    for i in tl.range(first, tl.load(tile + 3)):
        at = ahead.to(tl.int64)
        ahead = tl.load(full + i + 1)
        key = load_rows(k_base + at * k_token, column * k_token, None, D, COLUMNS, WIDEN)  # (BLOCK, COLUMNS)
        value = load_rows(v_base + at * v_token, column * v_token, None, D, COLUMNS, WIDEN)
        acc = queries_step(acc, query, grad, log, dot, key, value, score_scale, None, F32)

    for i in tl.range(tl.load(tile + 4), tl.load(tile + 5), num_stages=1):
        at = tl.load(partial + i * 3).to(tl.int64)
        here = at + column < tl.load(partial + i * 3 + 1)
        visible = seen(patterns, tl.load(partial + i * 3 + 2), row, TILE, BLOCK)
        key = load_rows(k_base + at * k_token, column * k_token, here, D, COLUMNS, WIDEN)
        value = load_rows(v_base + at * v_token, column * v_token, here, D, COLUMNS, WIDEN)
        # A query that sees a key that isn't finite has an lse or delta that isn't.
        key = finite(key)
        acc = queries_step(acc, query, grad, log, dot, key, value, score_scale, visible, F32)

    base = grad_q + sample * dq_batch + head * dq_head + begin * dq_token
    store_rows(base, row * dq_token, valid, acc * scale, D, COLUMNS)


@triton.jit
def keys_step(dk, dv, k, v, q, grad, log, delta, scale, visible, F32: tl.constexpr):
    s = tl.dot(k, tl.trans(q), input_precision=F32)  # (TILE, BLOCK): keys down, queries across
    p = tl.exp2(s * scale - log[None, :])
    dp = tl.dot(v, tl.trans(grad), input_precision=F32)
    ds = p * (dp - delta[None, :])
    if visible is not None:
        ds = tl.where(visible, ds, 0.0)
        p = tl.where(visible, p, 0.0)
    dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision=F32)
    dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=F32)
    return dk, dv


@triton.jit(do_not_specialize=UNSPECIALISED)
def keys_kernel(
    q, k, v, grad_out, lse, delta, grad_k, grad_v,
    tiles, tile_ptr, full, partial, patterns,
    scale, heads, group, q_len, most_tiles, section, flat_heads, sample_tiles,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    grad_batch, grad_head, grad_token, dk_batch, dk_head, dk_token, dv_batch, dv_head, dv_token,
    D: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    WIDEN: tl.constexpr, F32: tl.constexpr,
):  # fmt: skip
    """grad_k and grad_v of a tile of keys; heads counts key heads, each with `group` query heads."""
    rank, flat = locate(most_tiles, flat_heads, section)
    sample, head = (flat // heads).to(tl.int64), (flat % heads).to(tl.int64)
    index = tl.load(tile_ptr + sample * sample_tiles) + rank
    if index >= tl.load(tile_ptr + sample * sample_tiles + 1):
        return
    tile = tiles + index.to(tl.int64) * 6
    begin = tl.load(tile).to(tl.int64)
    row = tl.arange(0, TILE)
    valid = begin + row < tl.load(tile + 1)
    key = load_rows(
        k + sample * k_batch + head * k_head + begin * k_token, row * k_token, valid, D, COLUMNS, WIDEN
    )  # (TILE, COLUMNS)
    value = load_rows(v + sample * v_batch + head * v_head + begin * v_token, row * v_token, valid, D, COLUMNS, WIDEN)
    column = tl.arange(0, BLOCK)
    score_scale = scale * LOG2_E
    dk = tl.zeros((TILE, COLUMNS), tl.float32)
    dv = tl.zeros((TILE, COLUMNS), tl.float32)

    for member in tl.range(group):
        query_head = head * group + member
        q_base = q + sample * q_batch + query_head * q_head
        grad_base = grad_out + sample * grad_batch + query_head * grad_head
        numbers = (sample * heads * group + query_head) * q_len + column
        # The accumulators leave no register for reading the list ahead.
        for i in tl.range(tl.load(tile + 2), tl.load(tile + 3)):
            at = tl.load(full + i).to(tl.int64)
            query = load_rows(q_base + at * q_token, column * q_token, None, D, COLUMNS, WIDEN)  # (BLOCK, COLUMNS)
            grad = load_rows(grad_base + at * grad_token, column * grad_token, None, D, COLUMNS, WIDEN)
            log = tl.load(lse + at + numbers) * LOG2_E
            dot = tl.load(delta + at + numbers)
            dk, dv = keys_step(dk, dv, key, value, query, grad, log, dot, score_scale, None, F32)

        for i in tl.range(tl.load(tile + 4), tl.load(tile + 5), num_stages=1):
            at = tl.load(partial + i * 3).to(tl.int64)
            here = at + column < tl.load(partial + i * 3 + 1)
            visible = seen(patterns, tl.load(partial + i * 3 + 2), row, TILE, BLOCK)
            query = load_rows(q_base + at * q_token, column * q_token, here, D, COLUMNS, WIDEN)
            grad = load_rows(grad_base + at * grad_token, column * grad_token, here, D, COLUMNS, WIDEN)
            log = tl.load(lse + at + numbers, mask=here, other=0.0) * LOG2_E
            dot = tl.load(delta + at + numbers, mask=here, other=0.0)
            # A query that isn't finite has such an lse, a gradient such a delta: only keys that it sees get NaN.
            query, grad, log = finite(query), finite(grad), log + 0.0 * dot
            dk, dv = keys_step(dk, dv, key, value, query, grad, log, dot, score_scale, visible, F32)

    dk_base = grad_k + sample * dk_batch + head * dk_head + begin * dk_token
    dv_base = grad_v + sample * dv_batch + head * dv_head + begin * dv_token
    store_rows(dk_base, row * dk_token, valid, dk * scale, D, COLUMNS)
    store_rows(dv_base, row * dv_token, valid, dv, D, COLUMNS)


def operator(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *arguments
) -> tuple[Tensor, Tensor, Tensor]:
    """The registered operator; after lse come the mask's four arrays or None, and scale -> grads of q, k and v."""
    *mask, scale = arguments
    grad_out, q, k, v, out = (dense_rows(x) for x in (grad_out, q, k, v, out))
    lse, grad_lse = lse.contiguous(), None if grad_lse is None else grad_lse.contiguous()
    grads = tuple(x.new_empty(x.transpose(1, 2).shape).transpose(1, 2) for x in (q, k, v))
    delta = torch.empty_like(lse)
    with on_device(q):
        if q.numel() > 0:
            launch_queries(q, k, v, out, grad_out, lse, grad_lse, delta, grads[0], mask, scale)
        if k.numel() > 0:
            launch_keys(q, k, v, grad_out, lse, delta, *grads[1:], mask, scale)
    return grads


def launch_queries(q, k, v, out, grad_out, lse, grad_lse, delta, grad_q, mask, scale: float) -> None:
    batch, heads, q_len, head_dim = q.shape
    group, columns = heads // k.shape[1], padded(head_dim)
    config = configs.config("queries", configs.device_family(q.device), columns, q.element_size())
    plan = block_plan(mask, q_len, k.shape[2], config.tile, config.block, q.device)
    queries_kernel[(batch * heads * plan.most_tiles,)](
        q,
        k,
        v,
        out,
        grad_out,
        lse,
        lse if grad_lse is None else grad_lse,
        delta,
        grad_q,
        *plan.arrays,
        scale,
        heads,
        group,
        q_len,
        plan.most_tiles,
        section(k, batch * heads, sharing=group),
        batch * heads,
        int(plan.samples > 1),
        *[s for x in (q, k, v, out, grad_out, grad_q) for s in x.stride()[:3]],
        D=head_dim,
        COLUMNS=columns,
        TILE=config.tile,
        BLOCK=config.block,
        LSE_GRAD=grad_lse is not None,
        **numerics(q),
        **options(config),
    )


def launch_keys(q, k, v, grad_out, lse, delta, grad_k, grad_v, mask, scale: float) -> None:
    batch, kv_heads, k_len, head_dim = k.shape
    group, columns = q.shape[1] // kv_heads, padded(head_dim)
    config = configs.config("keys", configs.device_family(q.device), columns, q.element_size())
    plan = block_plan(mask, q.shape[2], k_len, config.tile, config.block, q.device, by_key=True)
    keys_kernel[(batch * kv_heads * plan.most_tiles,)](
        q,
        k,
        v,
        grad_out,
        lse,
        delta,
        grad_k,
        grad_v,
        *plan.arrays,
        scale,
        kv_heads,
        group,
        q.shape[2],
        plan.most_tiles,
        section(q, batch * kv_heads, reading=group),
        batch * kv_heads,
        int(plan.samples > 1),
        *[s for x in (q, k, v, grad_out, grad_k, grad_v) for s in x.stride()[:3]],
        D=head_dim,
        COLUMNS=columns,
        TILE=config.tile,
        BLOCK=config.block,
        **numerics(q),
        **options(config),
    )
