"""A profile from end to end on the smallest preset: its figures hang together, and every form shows them."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console

from tests.profiling.made_up_nvml import FakeNvml
from videoar.profiling import measure
from videoar.profiling.measure import profile
from videoar.profiling.nvml import GpuMeter
from videoar.profiling.page import page, save_page
from videoar.profiling.result import Gpu, Spread, percentile
from videoar.profiling.subject import Options, folder_subject, preset_subject
from videoar.profiling.table import print_profile, remarks


@pytest.fixture(scope="module")
def found():
    torch.manual_seed(0)
    return profile(preset_subject("tiny", Options(pack=torch.bfloat16, batch=2, compare_eager=True)), rounds=3)


def contenders(found):
    return [found.ours, found.eager]


def test_parts_add_up_to_the_clip_of_median_time(found):
    for timed in contenders(found):
        assert sum(part.in_median_clip for part in timed.parts) == pytest.approx(timed.seconds.median)
        assert sum(part.share for part in timed.parts) == pytest.approx(1.0)
        assert [p.name for p in timed.parts] == [
            "text", "prefill", "transformer", "sampling", "decode", "between parts",
        ]  # fmt: skip
        assert all(part.in_median_clip > 0 for part in timed.parts)


def test_steps_are_all_there_and_fit_into_the_clip(found):
    for timed in contenders(found):
        assert [(row.frame, row.scale) for row in timed.steps] == [(f, s) for f in range(3) for s in range(2)]
        assert all(set(row.parts) == {"transformer", "sampling"} for row in timed.steps)
        assert all(row.seconds == pytest.approx(sum(row.parts.values())) for row in timed.steps)
        assert min(row.seconds for row in timed.steps) > 0 and timed.first_frame < timed.seconds.most


def test_rates_are_work_over_time(found):
    for timed in contenders(found):
        assert timed.frame_rate == pytest.approx(2 * 9 / timed.seconds.median)
        assert timed.token_rate == pytest.approx(2 * 3 * 5 / timed.seconds.median)
        part = next(part for part in timed.parts if part.name == "transformer")
        assert part.flops == sum(row.flops for row in timed.steps)
        assert part.floor == pytest.approx(sum(row.floor for row in timed.steps))
        assert part.flop_rate == pytest.approx(part.flops / part.seconds.median)
        assert part.over_floor == pytest.approx(part.seconds.median / part.floor)


def test_a_step_takes_no_less_than_its_work_at_the_limits(found):
    matmul, copy = (rate.rates.median for rate in found.limits)
    assert [rate.unit for rate in found.limits] == ["FLOP/s", "B/s"]
    for row in found.ours.steps:
        assert row.floor == pytest.approx(max(row.flops / matmul, row.bytes / copy))


def test_every_contender_made_as_many_clips(found):
    assert found.rounds == 3
    assert all(len(timed.samples) == timed.seconds.count == 3 for timed in contenders(found))
    assert found.speedup == pytest.approx(found.eager.seconds.median / found.ours.seconds.median)
    assert found.disagreement < 0.05


def test_json_holds_every_figure(found, tmp_path):
    found.save(tmp_path / "profile.json")
    data = json.loads((tmp_path / "profile.json").read_text())
    assert data["schema"] == 1
    assert set(data) == {
        "schema", "machine", "subject", "included", "rounds", "ours", "bare", "eager", "disagreement", "limits",
        "memory", "gpu", "speedup",
    }  # fmt: skip
    assert set(data["ours"]) == {
        "name", "computes_in", "seconds", "first_clip", "first_frame", "frame_rate", "token_rate", "unit", "parts",
        "steps", "samples", "timeline",
    }  # fmt: skip
    assert set(data["ours"]["seconds"]) == {"median", "p95", "least", "most", "count"}
    assert set(data["ours"]["timeline"][0]) == {"part", "frame", "scale", "begin", "seconds"}
    assert data["ours"]["computes_in"] == "bf16" and data["gpu"] is None
    assert all(size > 1e6 for size in data["memory"].values())
    named = [timed["name"] for timed in (data["ours"], data["bare"], data["eager"]) if timed]
    assert [name.rpartition("(")[2][:-1] for name in data["memory"]] == named
    assert data["subject"]["batch"] == "2" and data["machine"]["torch"] == torch.__version__


class Links(HTMLParser):
    """Collects tags, and whatever would make a browser fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.fetched = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "xlink:href")]


def check_page(text: str) -> Links:
    links = Links()
    links.feed(text)
    links.close()
    assert not links.fetched and not {"script", "link", "iframe", "object", "img"} & set(links.tags)
    assert "http" not in text.replace("http-equiv", "") and "url(" not in text and "@import" not in text
    for drawing in re.findall(r"<svg.*?</svg>", text, re.S):
        root = ElementTree.fromstring(drawing)
        assert all(float(e.get("width")) > 0 and float(e.get("height")) >= 0 for e in root.iter("rect"))
    return links


def test_the_page_needs_nothing_from_outside_and_draws_every_span(found, tmp_path):
    save_page(found, tmp_path / "deep" / "profile.html")
    text = (tmp_path / "deep" / "profile.html").read_text()
    links = check_page(text)
    assert links.tags.count("svg") == 4  # shares, two timelines, steps
    spans = sum(len(timed.timeline) for timed in contenders(found))
    bars = sum(len(timed.parts) for timed in contenders(found))
    assert links.tags.count("rect") == spans + bars + 2 * len(found.ours.steps)
    assert "eager PyTorch takes" in text and "What the figures include" in text


def test_the_page_shows_what_nvml_read(found):
    gpu = Gpu(seconds=1.0, clips=5, readings=((0.1, 300.0, 90.0, 1900.0), (0.5, 320.0, None, 1800.0)), watts=310.0)
    links = check_page(page(replace(found, gpu=gpu)))
    assert links.tags.count("polyline") == 3


def test_the_table_states_what_is_included(found):
    console = Console(file=io.StringIO(), width=80)
    print_profile(found, console)
    text = console.file.getvalue()
    for wanted in ("frames/s", "transformer", "x floor", "Limit copy", "Peak resident", "It leaves out", "2x2"):
        assert wanted in text
    table = [line for line in text.splitlines() if line.startswith(" ")]
    assert table and not any("…" in line for line in table), "cut off at 80 columns"


def test_replayed_steps_are_held_against_the_same_floor(found, monkeypatch):
    subject = preset_subject("tiny", Options(pack=torch.bfloat16, batch=2))
    eager = subject.pipeline._decoder

    def replaying(*arguments):
        decoder = eager(*arguments)
        decoder.run = lambda key, step: step()
        return decoder

    monkeypatch.setattr(subject.pipeline, "_decoder", replaying)
    graphs = profile(subject, rounds=1)
    assert [p.name for p in graphs.ours.parts] == ["text", "prefill", "step", "decode", "between parts"]
    transformer, step = found.ours.parts[2], graphs.ours.parts[2]
    assert step.flops == transformer.flops and step.bytes == transformer.bytes
    assert all(set(row.parts) == {"step"} for row in graphs.ours.steps)
    check_page(page(graphs))


def test_parts_that_overlap_are_said_to(found):
    last = replace(found.ours.parts[-1], in_median_clip=-1e-3, share=-0.1)
    overlapping = replace(found, ours=replace(found.ours, parts=(*found.ours.parts[:-1], last)))
    assert any("side by side" in line and "1 ms longer" in line for line in remarks(overlapping))
    check_page(page(overlapping))


def test_power_is_read_while_clips_run_back_to_back(monkeypatch):
    monkeypatch.setattr(measure, "meter_for", lambda device: GpuMeter.of("1234", FakeNvml()))
    monkeypatch.setattr(measure, "WATCHED_SECONDS", 0.1)
    subject = preset_subject("tiny", Options(decode=False))
    gpu = measure.watch(subject, lambda _: None)
    assert gpu.clips >= 1 and gpu.facts["power limit"] == "700 W" and gpu.busy == 97
    assert gpu.joules_per_clip == pytest.approx(gpu.watts * gpu.seconds / gpu.clips)
    assert gpu.joules_per_frame == pytest.approx(gpu.joules_per_clip / 9)
    monkeypatch.undo()
    assert measure.watch(subject, lambda _: None).absent == "not an NVIDIA GPU"


def test_decoding_and_guidance_can_be_left_out():
    options = Options(decode=False, guidance=False, dtype=torch.float32)
    found = profile(preset_subject("tiny", options, layers=1), rounds=1)
    assert "decode" not in {part.name for part in found.ours.parts} and found.eager is None
    assert found.subject["model"] == "preset tiny, 1 of 2 layers" and found.subject["guidance"] == "off"
    assert any("--no-decode" in line for line in found.included)
    both = profile(preset_subject("tiny", Options(decode=False, dtype=torch.float32), layers=1), rounds=1)
    assert both.ours.steps[0].flops == 2 * found.ours.steps[0].flops


def test_a_saved_model_runs_as_it_is(tmp_path):
    preset_subject("tiny", Options()).pipeline.transformer.save_pretrained(tmp_path)  # a transformer alone is no model
    with pytest.raises(FileNotFoundError, match=r"sampling\.json"):
        folder_subject(tmp_path, Options())


def test_percentiles_interpolate():
    assert percentile([3.0], 0.95) == 3.0
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert percentile(list(range(101)), 0.95) == 95.0
    assert Spread.of([1.0, 3.0]).p95 == pytest.approx(2.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "--batch of at least 1"),
        ({"pack": torch.bfloat16, "dtype": torch.float32}, "--precision or --dtype, got both"),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="--rounds of at least 1"):
        profile(preset_subject("tiny", Options()), rounds=0)
