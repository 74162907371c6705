"""Passes that are replayed give what passes run by Python give: other prompts and seeds, streams, a switched prompt."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from host_copies import DEVICE, HostCopies, address
from named_gpu import NamedGpu
from recorded_steps import RecordedSteps, WatchedSteps, own_operators
from sharp_backbone import BATCH, CONFIG, GRID, SCHEMES, config_for, distance, prompt, sharp_backbone

from videoar import step_graphs
from videoar.next_unit import SamplingOptions, UnitDecoder, cube, frame, sample_units
from videoar.next_unit import attention as next_unit_attention
from videoar.next_unit.unit_cache import MOST_PLACES, ring_slots
from videoar.step_graphs import CudaGraphs, KeptDecoders
from videoar_kernels import _C, KVCache
from videoar_kernels.report import without_kernel

SAMPLES = [(2, [5, 6]), (4, [7, 2**64 - 1]), (2, [7, 8])]  # (prompt, seeds)
STREAM = {"clips": None, "window": 3, "sink": 1}
OPTIONS = {
    "noisy context": SamplingOptions(steps=2, context_noise=0.2),
    "renoise": SamplingOptions(steps=3),
    "euler": SamplingOptions(steps=2, method="euler"),
    "guided": SamplingOptions(steps=2, guidance=3.0),
}
schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


def tokens_of(units, count: int | None = None) -> torch.Tensor:
    return torch.cat([unit.tokens for unit in islice(units, count)], dim=1)


def both_ways(model, layout, options, run, count=None, **shape):
    """Yields what a decoder with this runner and `sample_units` make of the same prompts and seeds."""
    uncond = torch.zeros_like(prompt(model.config))
    decoder = UnitDecoder(model, uncond, layout, options=options, run=run, **shape)
    for number, seeds in SAMPLES:
        text = prompt(model.config, seed=number)
        found = tokens_of(decoder.decode(text, seeds=seeds, uncond=uncond), count)
        expected = sample_units(model, text, layout, seeds=seeds, options=options, uncond=uncond, **shape)
        yield found, tokens_of(expected, count)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@schemes
def test_recorded_passes_decode_other_clips(scheme, options):
    config, layout, run = config_for(scheme), scheme.on(GRID), RecordedSteps()
    for found, expected in both_ways(sharp_backbone(config), layout, options, run):
        assert torch.equal(found, expected)
        run.poison()
    units, passes = len(layout.units), options.steps + 1
    assert len(run.steps) == 1 + units, "one for the text and one for every unit, whatever the pass"
    assert run.replays == len(SAMPLES) * (1 + units * passes) - len(run.steps)
    waits = {name for name in run.names() if "local_scalar" in name or "nonzero" in name or "item" in name}
    assert not waits, "these wait for the device"


@schemes
def test_recorded_passes_decode_streams_whose_cache_wraps_and_whose_time_is_closed_up(scheme):
    config, layout, run = config_for(scheme), scheme.on(GRID), RecordedSteps()
    options = SamplingOptions(steps=1)
    count = 5 * len(layout.units)
    for found, expected in both_ways(sharp_backbone(config), layout, options, run, count, **STREAM):
        assert torch.equal(found, expected)
        run.poison()


@pytest.mark.parametrize("shape", [{}, STREAM], ids=["clip", "stream"])
@schemes
def test_a_decoder_holds_all_that_its_passes_read(scheme, shape):
    config, layout, run = config_for(scheme), scheme.on(GRID), WatchedSteps()
    model, text = sharp_backbone(config), prompt(config)
    decoder = UnitDecoder(model, text, layout, options=SamplingOptions(steps=1), run=run, **shape)
    tokens_of(decoder.decode(text, seeds=[5, 6]), 2 * len(layout.units))
    assert len(run.read) > len(layout.units) and not run.freed()


def test_a_graph_of_another_place_is_seen(monkeypatch):
    """The control of the tests above: were places not told apart, they would fail."""
    monkeypatch.setattr(KVCache, "place_key", lambda self, length: (length,))
    run, layout = RecordedSteps(), frame().on(GRID)
    found, expected = next(both_ways(sharp_backbone(CONFIG), layout, OPTIONS["renoise"], run))
    assert not torch.allclose(found, expected)


def test_a_stream_needs_no_more_graphs_once_its_cache_has_gone_round():
    config, layout, run = CONFIG, cube().on(GRID), RecordedSteps()
    decoder = UnitDecoder(
        sharp_backbone(config), prompt(config), layout, options=SamplingOptions(steps=1), run=run, **STREAM
    )
    units = decoder.decode(prompt(config), seeds=[1, 2])
    ring = decoder.cache.kv.capacity - decoder.cache.kv.sink
    period = ring // torch.tensor(layout.length).gcd(torch.tensor(ring)).item()  # clips
    for _ in islice(units, (period + 1) * len(layout.units)):
        pass
    seen = len(run.steps)
    for _ in islice(units, (period + 1) * len(layout.units)):
        pass
    assert len(run.steps) == seen <= 1 + MOST_PLACES


def test_a_prompt_that_is_switched_is_read_by_the_passes_that_are_replayed():
    model, layout = sharp_backbone(CONFIG), cube().on(GRID)

    def made(run, switch):
        decoder = UnitDecoder(model, prompt(CONFIG), layout, run=run)
        for _ in range(2):  # the second time all is replayed
            units = decoder.decode(prompt(CONFIG), seeds=[1, 2])
            parts = [next(units) for _ in range(3)]
            if switch:
                decoder.read(prompt(CONFIG, seed=9))
            parts += units
        return tokens_of(parts)

    eager = made(lambda key, step: step(), True)
    assert torch.equal(made(RecordedSteps(), True), eager)
    other = made(RecordedSteps(), False)
    begun = layout.offsets[3]
    assert torch.equal(other[:, :begun], eager[:, :begun]) and not torch.allclose(other[:, begun:], eager[:, begun:])


def test_a_decoder_takes_one_clip_at_a_time_and_recovers_from_one_left_early():
    model, layout = sharp_backbone(CONFIG), cube().on(GRID)
    decoder = UnitDecoder(model, prompt(CONFIG), layout)
    first = decoder.decode(prompt(CONFIG), seeds=[1, 2])
    next(first)
    with pytest.raises(RuntimeError, match="one clip or stream at a time"):
        next(decoder.decode(prompt(CONFIG), seeds=[1, 2]))
    first.close()
    again = tokens_of(decoder.decode(prompt(CONFIG), seeds=[1, 2]))
    assert torch.equal(again, tokens_of(sample_units(model, prompt(CONFIG), layout, seeds=[1, 2])))


def test_a_decoder_made_in_inference_mode_serves_outside_it():
    model, layout = sharp_backbone(CONFIG), cube().on(GRID)
    with torch.inference_mode():
        decoder = UnitDecoder(model, prompt(CONFIG), layout, **STREAM)
        inside = tokens_of(decoder.decode(prompt(CONFIG), seeds=[1, 2]), 9)
    assert torch.equal(tokens_of(decoder.decode(prompt(CONFIG), seeds=[1, 2]), 9), inside)


def test_a_longer_text_is_refused():
    decoder = UnitDecoder(sharp_backbone(CONFIG), prompt(CONFIG), cube().on(GRID))
    with pytest.raises(ValueError, match="at most 5"):
        next(decoder.decode(prompt(CONFIG, length=6), seeds=[1, 2]))


@pytest.mark.parametrize("shape", [{}, STREAM], ids=["clip", "stream"])
def test_a_pass_asks_for_no_new_mask_when_it_is_captured(shape, monkeypatch):
    gpu = NamedGpu(monkeypatch)
    monkeypatch.setattr(next_unit_attention, "range_attention", gpu.attention)
    layout = cube().on(GRID)
    decoder = UnitDecoder(sharp_backbone(CONFIG), prompt(CONFIG), layout, run=gpu.run_and_capture, **shape)
    count = 3 * len(layout.units) if shape else len(layout.units)
    assert len(list(islice(decoder.decode(prompt(CONFIG), seeds=[1, 2]), count))) == count
    assert gpu.made >= len(layout.units)


@pytest.mark.parametrize("shape", [{}, STREAM], ids=["clip", "stream"])
@pytest.mark.parametrize("options", [OPTIONS["renoise"], OPTIONS["euler"]], ids=["renoise", "euler"])
def test_a_pass_copies_nothing_from_the_host(options, shape, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "data_ptr", address)
    layout, run, text = cube().on(GRID), HostCopies(), prompt(CONFIG).to(DEVICE)
    model = sharp_backbone(CONFIG).to(DEVICE)
    decoder = UnitDecoder(model, text, layout, options=options, run=run, **shape)
    count = len(layout.units) + (3 if shape else 0)
    units = decoder.decode(text, seeds=[1, 2], uncond=torch.zeros_like(text))
    assert len(list(islice(units, count))) == count
    assert run.steps == 1 + count * (options.steps + 1) and run.found == []


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [{}, STREAM], ids=["clip", "stream"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuda_graphs_decode_other_clips(dtype, shape):
    layout, model = cube().on(GRID), sharp_backbone(CONFIG.replace(width=128)).to("cuda", dtype)
    run = CudaGraphs(torch.device("cuda"))
    uncond = torch.zeros_like(prompt(CONFIG)).to("cuda", dtype)
    decoder = UnitDecoder(model, uncond, layout, options=OPTIONS["guided"], run=run, **shape)
    for number, seeds in SAMPLES:
        text = prompt(CONFIG, seed=number).to("cuda", dtype)
        arguments = {"seeds": seeds, "uncond": uncond}
        found = tokens_of(decoder.decode(text, **arguments), 20)
        expected = sample_units(model, text, layout, options=OPTIONS["guided"], **arguments, **shape)
        # The same kernels on the same numbers; a stale tensor or another place would make differences of size 1.
        assert distance(found, tokens_of(expected, 20)) < (1e-4 if dtype == torch.float32 else 2e-2)
    assert len(run) > len(layout.units)


@pytest.mark.parametrize(
    ("lengths", "least"), [([3900, 4290] * 4, 37050), ([1560] * 21, 21 * 1560), ([7, 11, 13], 1000), ([5], 35)]
)
def test_a_ring_has_few_places_for_few_slots_more(lengths, least):
    ring = ring_slots(least, lengths)
    assert least <= ring <= least + sum(lengths)
    places, at = set(), 0
    for index in range(200 * len(lengths)):
        places.add((at, index % len(lengths)))
        at = (at + lengths[index % len(lengths)]) % ring
    assert len(places) <= MOST_PLACES
    assert ring <= 1.02 * least or len(lengths) == 3, "odd lengths need more"


def test_batches_are_decoded_as_one_with_guidance():
    seen = []
    model, layout = sharp_backbone(CONFIG), cube().on(GRID)
    step = model.step
    model.step = lambda x, *rest, **options: seen.append(x.shape[0]) or step(x, *rest, **options)
    uncond = torch.zeros_like(prompt(CONFIG))
    tokens_of(sample_units(model, prompt(CONFIG), layout, seeds=[1, 2], options=OPTIONS["guided"], uncond=uncond))
    assert set(seen) == {2 * BATCH} and len(seen) == 3 * len(layout.units)


def test_decoders_are_kept_on_a_gpu_unless_they_are_busy(monkeypatch):
    monkeypatch.setattr(step_graphs, "CudaGraphs", lambda device: f"graphs on {device}")
    monkeypatch.setattr(step_graphs, "without_kernel", lambda names: [])
    kept, gpu = KeptDecoders(), torch.device("cuda")

    def make(run):
        return SimpleNamespace(busy=False, run=run)

    first = kept.get("a", gpu, make)
    assert kept.get("a", gpu, make) is first and first.run == "graphs on cuda"
    first.busy = True
    assert kept.get("a", gpu, make) is not first and len(kept) == 1
    latest = [kept.get(number, gpu, make) for number in range(5)]
    assert len(kept) == step_graphs.KEPT_DECODERS
    assert kept.get(4, gpu, make) is latest[4] and kept.get(0, gpu, make) is not latest[0]
    kept.clear()
    assert kept.get(4, gpu, make) is not latest[4]
    assert kept.get("a", torch.device("cpu"), make).run is step_graphs.run_eagerly and len(kept) == 1


def test_steps_run_one_by_one_where_an_operator_has_no_kernel(monkeypatch):
    monkeypatch.setattr(step_graphs, "CudaGraphs", lambda device: "graphs")
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(step_graphs, "without_kernel", lambda names: [name for name in names if name == "sample_bits"])
    with pytest.warns(
        UserWarning, match="without CUDA graphs and slowly: this build has no CUDA kernel of sample_bits"
    ):
        assert step_graphs.step_runner(gpu) is step_graphs.run_eagerly
    assert "no CUDA kernel of sample_bits" in step_graphs.how_steps_run(gpu)
    monkeypatch.setattr(step_graphs, "without_kernel", lambda names: [])
    assert step_graphs.step_runner(gpu) == "graphs" and step_graphs.step_runner(cpu) is step_graphs.run_eagerly


def test_a_build_without_cuda_has_no_kernels_for_it():
    lacking = without_kernel(step_graphs.OPERATORS)
    assert ("sample_bits" in lacking) == ("swiglu" in lacking) == (not _C.build_info()["cuda"])
    assert without_kernel(step_graphs.OPERATORS, "cpu") == []


@schemes
def test_operators_of_the_passes_are_those_that_graphs_ask_for(scheme):
    run, layout = RecordedSteps(), scheme.on(GRID)
    decoder = UnitDecoder(sharp_backbone(config_for(scheme)), prompt(CONFIG), layout, run=run, **STREAM)
    tokens_of(decoder.decode(prompt(CONFIG), seeds=[1, 2]), 2)
    assert own_operators(run) <= set(step_graphs.OPERATORS)
