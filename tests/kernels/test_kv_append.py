"""What an append writes where: norm and RoPE of keys, strides, several layers at once, and what it refuses."""

from __future__ import annotations

import itertools

import pytest
import torch
from closeness import assert_close
from torch import Tensor

from videoar_kernels import KVCache, reference
from videoar_kernels.library import ops

ReferenceCache = reference.kv_cache.KVCache
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
D = 16


def block(length: int, *, batch: int = 2, heads: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    k, v = torch.randn(2, batch, heads, length, D, dtype=torch.float64).to(dtype)
    return k, v


def held(cache: KVCache, layer: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values in slot order."""
    view = cache.view(layer)
    slots = [slot for begin, end in view.ranges for slot in range(begin, end)]
    return view.k[:, :, slots], view.v[:, :, slots]


def exact_keys(k: Tensor, weight: Tensor | None, positions: Tensor | None, dims, interleaved: bool) -> Tensor:
    """Norm and RoPE in float64, one pair at a time with complex numbers."""
    k = k.double()
    if weight is not None:
        k = torch.nn.functional.rms_norm(k, (k.shape[-1],), weight.double(), eps=1e-6)
    if positions is None:
        return k
    axis = [a for a in range(3) for _ in range(dims[a] // 2)]
    power = [2 * i / dims[a] for a in range(3) for i in range(dims[a] // 2)]
    angle = positions.double()[..., axis] * 100.0 ** -torch.tensor(power, dtype=torch.float64)
    angle = angle if angle.ndim == 2 else angle[:, None]
    half = k.shape[-1] // 2
    pairs = k.unflatten(-1, (half, 2)) if interleaved else k.unflatten(-1, (2, half)).mT
    turned = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle)
    turned = torch.view_as_real(turned)
    return turned.flatten(-2) if interleaved else turned.mT.flatten(-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fused", ["plain", "norm", "rope", "both"])
@pytest.mark.parametrize("head_dim, dims", [(16, (8, 4, 4)), (64, None), (34, (2, 32, 0)), (128, (44, 42, 42))])
def test_append_normalises_and_rotates_keys(isa, dtype, fused, head_dim, dims):
    length, batch = 7, 2
    k, v = torch.randn(2, batch, 3, length, head_dim, dtype=torch.float64).to(dtype)
    weight = torch.randn(head_dim).to(dtype) if fused in ("norm", "both") else None
    per_sample = head_dim == 64
    far = 8 if dtype == torch.float64 else 5000  # float64 angles round too
    positions = torch.randint(0, far, (batch, length, 3) if per_sample else (length, 3))
    positions = positions if fused in ("rope", "both") else None
    options = dict(k_weight=weight, positions=positions, dims=dims, theta=100.0, interleaved=head_dim != 34)
    cache = KVCache(1, batch, 3, 11, head_dim, sink=2, dtype=dtype)
    twin = ReferenceCache(1, batch, 3, 11, head_dim, sink=2, dtype=dtype)
    cache.append(0, k, v, **options), twin.append(0, k, v, **options)
    split = dims or (head_dim - 4 * (head_dim // 6), 2 * (head_dim // 6), 2 * (head_dim // 6))
    exact = exact_keys(k, weight, positions, split, options["interleaved"])
    out_k, out_v = held(cache)
    assert torch.equal(out_v, v)
    assert_close(out_k, exact, low=None if fused == "plain" else twin.view(0).k)
    assert_close(twin.view(0).k, exact, low=exact.to(dtype))


@pytest.mark.parametrize("layout", ["transposed", "expanded", "sliced", "strided_last"])
def test_append_takes_any_strides(layout):
    shape = (2, 2, 5, D)
    k = {
        "transposed": torch.randn(2, 5, 2, D).transpose(1, 2),
        "expanded": torch.randn(1, 1, 1, D).expand(shape),
        "sliced": torch.randn(4, 2, 9, 2 * D)[::2, :, 1:6, 3 : 3 + D],
        "strided_last": torch.randn(2, 2, 5, 2 * D)[..., ::2],
    }[layout]
    cache = KVCache(1, 2, 2, 9, D, sink=1)
    cache.append(0, k, k.flip(-1), k_weight=torch.ones(2 * D)[::2])
    out_k, out_v = held(cache)
    assert torch.equal(out_v, k.flip(-1))
    assert_close(out_k, exact_keys(k, torch.ones(D), None, None, True), low=torch.nn.functional.rms_norm(k, (D,)))


@pytest.mark.parametrize("layout", ["heads first", "tokens first"])
@pytest.mark.parametrize("fused", [False, True])
def test_long_blocks_run_from_the_sink_into_the_ring_and_around_it(isa, layout, fused):
    lengths, capacity, sink, keys = (80, 150, 100, 190), 200, 90, []
    cache = KVCache(1, 2, 3, capacity, D, sink=sink)
    options = {"k_weight": torch.rand(D)} if fused else {}
    for length in lengths:
        shape = (2, 3, length, D) if layout == "heads first" else (2, length, 3, D)
        k = torch.randn(shape) if layout == "heads first" else torch.randn(shape).transpose(1, 2)
        cache.evict(cache.units if length > capacity - cache.length else 0)
        length = min(length, capacity - cache.length)
        cache.append(0, k[:, :, :length], -k[:, :, :length], **options)
        keys.append(reference.kv_cache.normalise_and_rotate(k[:, :, :length], options.get("k_weight"), None))
        cache.commit()
        values = cache.view(0).v
        total = sum(x.shape[2] for x in keys)
        for i in range(max(total - length, 0), total):
            slot = i if i < sink else sink + (i - sink) % (capacity - sink)
            torch.testing.assert_close(cache.view(0).k[:, :, slot], torch.cat(keys, dim=2)[:, :, i])
            assert torch.equal(values[:, :, slot], -k[:, :, i - total + length])


def test_one_kernel_writes_several_layers_with_weights_of_their_own():
    layers, length = 3, 4
    ks, vs = torch.randn(2, layers, 2, 2, length, D)
    weights, positions = torch.randn(layers, D), torch.randint(0, 99, (length, 3))
    together, single = KVCache(layers, 2, 2, 9, D), KVCache(layers, 2, 2, 9, D)
    together.append(range(layers), ks, vs, k_weight=weights, positions=positions)
    for layer in range(layers):
        single.append(layer, ks[layer], vs[layer], k_weight=weights[layer], positions=positions)
        assert torch.equal(held(together, layer)[0], held(single, layer)[0])
        assert torch.equal(held(together, layer)[1], held(single, layer)[1])


@pytest.mark.parametrize("threads", [1, 2])
def test_result_does_not_depend_on_the_number_of_threads(threads):
    before = torch.get_num_threads()
    k, v = torch.randn(2, 2, 4, 200, D)
    positions = torch.randint(0, 99, (200, 3))
    expected = reference.kv_cache.normalise_and_rotate(k, torch.ones(D), positions)
    try:
        torch.set_num_threads(threads)
        cache = KVCache(1, 2, 4, 300, D, sink=10)
        cache.append(0, k, v, k_weight=torch.ones(D), positions=positions)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(held(cache)[0], expected, rtol=1e-5, atol=1e-5)


def test_blocks_that_require_grad_are_stored_without_a_graph():
    cache = KVCache(1, 2, 2, 8, D)
    k = torch.randn(2, 2, 3, D, requires_grad=True)
    cache.append(0, k * 2, k, k_weight=torch.ones(D, requires_grad=True))
    assert not cache.view(0).k.requires_grad


@pytest.mark.parametrize("case", ["plain", "fused", "two layers"])
def test_operator_passes_opcheck(case):
    count = 2 if case == "two layers" else 1
    blocks = [torch.randn(2, 2, 3, D) for _ in range(2 * count)]
    caches = [torch.zeros(2, 2, 8, D) for _ in range(2 * count)]
    weights = [] if case == "plain" else [torch.randn(D) for _ in range(count)]
    positions = None if case == "plain" else torch.randint(0, 9, (3, 3))
    args = (caches[:count], caches[count:], blocks[:count], blocks[count:], weights, positions)
    args += (6, 2, 1e-6, [8, 4, 4], 1e4, True)
    torch.library.opcheck(ops.kv_cache_append.default, args)


def test_append_and_view_compile_without_a_graph_break():
    cache, eager = KVCache(1, 2, 2, 12, D, sink=2), KVCache(1, 2, 2, 12, D, sink=2)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(k_cache, v_cache, k, v, positions, start):
        ops.kv_cache_append([k_cache], [v_cache], [k], [v], [], positions, start, 2, 1e-6, [8, 4, 4], 1e4, True)
        return k_cache.sum()

    for start in (0, 4, 8):
        k, v = block(4, dtype=torch.float32)
        positions = torch.randint(0, 9, (4, 3))
        view = cache.view(0)
        step(view.k, view.v, k, v, positions, start)
        eager.append(0, k, v, positions=positions, dims=(8, 4, 4))
        eager.commit()
    torch.testing.assert_close(cache.view(0).k, eager.view(0).k)
    torch.testing.assert_close(cache.view(0).v, eager.view(0).v)


def test_operator_on_other_devices_is_the_reference():
    cache, start = torch.zeros(2, 2, 8, D), 5
    k, v = block(3, dtype=torch.float32)
    positions = torch.randint(0, 9, (3, 3))
    rest = ([torch.ones(D)], positions, start, 2, 1e-6, [8, 4, 4], 1e4, True)
    plain = [cache.clone(), cache.clone()]
    compiled = [cache.clone(), cache.clone()]
    reference.kv_cache.kv_cache_append([plain[0]], [plain[1]], [k], [v], *rest)
    ops.kv_cache_append([compiled[0]], [compiled[1]], [k], [v], *rest)
    torch.testing.assert_close(compiled, plain)


K, V = torch.zeros(2, 2, 3, D), torch.zeros(2, 2, 3, D)


@pytest.mark.parametrize(
    "error, match, call",
    [
        (ValueError, r"k of shape \(2, 2, L >= 1, 16\), .* got \(1, 2, 3, 16\)", lambda c: c.append(0, K[:1], V)),
        (ValueError, r"expected v of shape .* got \(2, 2, 2, 16\)", lambda c: c.append(0, K, V[:, :, 1:])),
        (ValueError, r"got \(2, 2, 0, 16\)", lambda c: c.append(0, K[:, :, :0], V[:, :, :0])),
        (ValueError, r"got \(3, 16\)", lambda c: c.append(0, K[0, 0], V)),
        (TypeError, r"expected k of torch.float32 on cpu, got torch.float64", lambda c: c.append(0, K.double(), V)),
        (ValueError, r"different layers in 0..1, got \[2\]", lambda c: c.append(2, K, V)),
        (ValueError, r"different layers in 0..1, got \[1, 1\]", lambda c: c.append([1, 1], [K, K], [V, V])),
        (ValueError, r"got 2 layers, 1 k, 2 v", lambda c: c.append([0, 1], [K], [V, V])),
        (ValueError, r"k_weight of shape \(16,\), got \(8,\)", lambda c: c.append(0, K, V, k_weight=torch.ones(8))),
        (ValueError, r"positions of shape \(3, 3\) or \(2, 3, 3\), got \(4, 3\)",
         lambda c: c.append(0, K, V, positions=torch.zeros(4, 3, dtype=torch.int64))),
        (TypeError, r"positions of torch.int64, got torch.int32",
         lambda c: c.append(0, K, V, positions=torch.zeros(3, 3, dtype=torch.int32))),
        (ValueError, r"even dims that add up to 16, got \[8, 8, 8\]",
         lambda c: c.append(0, K, V, positions=torch.zeros(3, 3, dtype=torch.int64), dims=(8, 8, 8))),
        (ValueError, r"finite theta > 0, got -1",
         lambda c: c.append(0, K, V, positions=torch.zeros(3, 3, dtype=torch.int64), theta=-1.0)),
        (ValueError, r"eps >= 0, got -1", lambda c: c.append(0, K, V, k_weight=torch.ones(D), eps=-1.0)),
        (ValueError, r"finite eps >= 0, got inf",
         lambda c: c.append(0, K, V, k_weight=torch.ones(D), eps=float("inf"))),
        (ValueError, r"k_weight of shape \(16,\), got \(1, 16\)",
         lambda c: c.append(0, K, V, k_weight=torch.ones(1, D))),
        (TypeError, r"k_weight of float32, .*, got torch.int64",
         lambda c: c.append(0, K, V, k_weight=torch.ones(D, dtype=torch.int64))),
        (TypeError, r"k_weight of float32, .*, got torch.bool",
         lambda c: c.append([0, 1], [K, K], [V, V], k_weight=[torch.ones(D), torch.ones(D, dtype=torch.bool)])),
        (TypeError, r"KVCache.append: expected layers as int, got \[True\]", lambda c: c.append(True, K, V)),
        (TypeError, r"expected layers as int, got \[False, True\]", lambda c: c.append([False, True], [K, K], [V, V])),
        (TypeError, r"KVCache.view: expected a layer as int, got True", lambda c: c.view(True)),
        (TypeError, r"KVCache: expected dtype float32, .*, got torch.int32",
         lambda c: KVCache(1, 1, 1, 8, 8, dtype=torch.int32)),
        (ValueError, r"expected k apart from the cache's memory", lambda c: c.append(0, c.k[0][:, :, 2:5], V)),
        (ValueError, r"expected v apart from the cache's memory",
         lambda c: c.append([1, 0], [K, K], [V, c.view(1).v[:, :, :3]])),
        (ValueError, r"KVCache.commit: expected one pending length in all layers, got \[3, 0\]",
         lambda c: (c.append(0, K, V), c.commit())),
        (ValueError, r"KVCache.commit: expected one pending length", lambda c: c.commit()),
        (ValueError, r"KVCache.evict: a block is pending", lambda c: (c.append(0, K, V), c.evict(0))),
        (ValueError, r"KVCache.evict: expected 0 to 0 units, got 1", lambda c: c.evict(1)),
        (ValueError, r"KVCache.evict: expected window >= 0, got -1", lambda c: c.evict(window=-1)),
        (ValueError, r"KVCache.view: expected a layer in 0..1, got 9", lambda c: c.view(9)),
        (ValueError, r"KVCache.view: expected a layer in 0..1, got -1", lambda c: c.view(-1)),
        (ValueError, r"KVCache.evict: expected every >= 1, got 0", lambda c: c.evict(0, every=0)),
        (ValueError, r"expected units or window", lambda c: c.evict()),
        (ValueError, r"cache needs positions", lambda c: KVCache(2, 2, 2, 8, D, relative=True).append(0, K, V)),
        (ValueError, r"KVCache: expected capacity >= 1, got 0", lambda c: KVCache(1, 1, 1, 0, 8)),
        (ValueError, r"sink of 3 and a window of 6 tokens exceed the capacity of 8",
         lambda c: KVCache(1, 1, 1, 8, 8, sink=3, window=6)),
        (ValueError, r"expected sink and window >= 0, got -1", lambda c: KVCache(1, 1, 1, 8, 8, sink=-1)),
    ],
)  # fmt: skip
def test_errors_name_the_argument_and_the_numbers(error, match, call):
    for grad in (True, False):  # without gradients the kernel checks first
        with torch.set_grad_enabled(grad), pytest.raises(error, match=match):
            call(KVCache(2, 2, 2, 8, D))


def test_no_two_tokens_of_a_block_get_one_slot(isa):
    """The operator by itself, which knows no cursors: a cache of 6 slots, of which 2 are the sink."""
    rotation = (1e-6, (), 10000.0, True)
    for start, length in itertools.product(range(9), range(1, 7)):
        slots = [i if i < 2 else 2 + (i - 2) % 4 for i in range(start, start + length)]
        (k, v), caches = block(length), torch.zeros(2, 2, 2, 6, D, dtype=torch.float64)
        if len(set(slots)) == length:
            ops.kv_cache_append_layer(*caches, k, v, None, None, start, 2)
            assert torch.equal(caches[0][:, :, slots], k) and torch.equal(caches[1][:, :, slots], v)
            continue
        with pytest.raises(RuntimeError, match="the block does not fit"):
            ops.kv_cache_append_layer(*caches, k, v, None, None, start, 2)
        with pytest.raises(ValueError, match=f"got {length} tokens for {len(set(slots))} slots"):
            reference.kv_cache.kv_cache_append(*([t] for t in (*caches, k, v)), [], None, start, 2, *rotation)
        assert not caches.any()


def test_a_block_may_come_from_another_layer():
    cache = KVCache(2, 2, 2, 8, D)
    with torch.no_grad():
        cache.append(0, K + 1, V + 2)
        cache.append(1, cache.view(0).k[:, :, :3], cache.view(0).v[:, :, :3])
    assert torch.equal(held(cache, 1)[0], K + 1) and torch.equal(held(cache, 1)[1], V + 2)
