"""Reports of streams, on videos whose answer is known: real sprites put in the place of a model's."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import pytest
import torch
from tiny_sprites import sprites, tiny_sprites
from typer.testing import CliRunner

from videoar.cli import app
from videoar.evaluation.adherence import ATTRIBUTES
from videoar.evaluation.caption_use import wrong_caption
from videoar.evaluation.followed import context_frames, switch_report
from videoar.evaluation.long_stream import WINDOW, memory_in_use, sliding_windows, stream_report
from videoar.next_unit import UnitDecoder, UnitPipeline


@pytest.fixture
def obedient(monkeypatch):
    """A model that shows each prompt perfectly, the new one `late` frames after it is due."""

    def install(late: int = 0) -> UnitPipeline:
        def stream(self, prompts, *, frames, seed, switches=None):
            video = sprites(prompts, frames)
            for time, others in (switches or {}).items():
                first = round(time * self.defaults.fps) + late
                video[:, :, first:] = sprites(others, frames)[:, :, first:]
            yield from video.split(4, dim=2)

        monkeypatch.setattr(UnitPipeline, "stream", stream)
        return tiny_sprites("frame", window=3)

    return install


def test_windows_slide_whatever_the_chunks():
    video = torch.arange(23)[None, :, None, None, None]
    for sizes in ([23], [1, 4, 4, 4, 4, 4, 2], [9, 14]):
        windows = list(sliding_windows(video.split(sizes, dim=1), 7, 3))
        assert [first for first, _ in windows] == [0, 3, 6, 9, 12, 15]
        assert all(window[0, :, 0, 0, 0].tolist() == list(range(first, first + 7)) for first, window in windows)


def test_a_stream_that_shows_its_prompts_scores_full_marks_and_not_against_others(obedient):
    found = stream_report(obedient(), frames=120, streams=4, stretch=40, marks=(40, 80, 1000))
    assert set(found.last.values()) == {1.0} and set(found.last_wrong_prompt.values()) == {0.0}
    assert [(part.first, part.end) for part in found.stretches] == [(0, 40), (40, 80), (80, 120)]
    assert all(set(part.right.values()) == {1.0} for part in found.stretches)
    assert list(found.memory) == [40, 80, 120] and all(count > 2**20 for count in found.memory.values())
    assert found.frames_per_second > 0 and all(part.seconds_per_unit > 0 for part in found.stretches)


def test_the_last_100_frames_are_neither_more_nor_fewer(monkeypatch):
    """A stream of 140 frames that shows what it is asked for in frames 40 to 60 alone, the first of the last 100."""

    def stream(self, prompts, *, frames, seed):
        video = sprites([wrong_caption(prompt, index) for index, prompt in enumerate(prompts)], frames)
        video[:, :, 40:60] = sprites(prompts, frames)[:, :, 40:60]
        yield video

    monkeypatch.setattr(UnitPipeline, "stream", stream)
    found = stream_report(tiny_sprites("frame", window=3), frames=140, streams=2, step=20)
    assert set(found.last.values()) == {1 / 5} and set(found.last_wrong_prompt.values()) == {4 / 5}


def test_videos_are_measured_on_a_torus_only_where_the_model_says_so(obedient):
    """These show their prompts perfectly, as the tests around say; as if nothing wrapped, sprites are cut somewhere."""
    flat = stream_report(obedient(), frames=29, streams=4, wrap=False)
    assert not flat.sampling["wrap"] and min(flat.last.values()) < 1
    switched = switch_report(obedient(), streams=4, contexts=1, wrap=False)
    assert not switched.sampling["wrap"] and min(min(shares.values()) for shares in switched.new) < 1


@pytest.mark.parametrize("late", [0, 12])
def test_a_switch_is_followed_as_late_as_it_is_shown(obedient, late):
    found = switch_report(obedient(late), streams=4, contexts=3)
    assert found.context == 3 and found.before == 8 and len(found.new) == 10
    assert set(found.shown_before.values()) == {1.0}
    assert found.follows_after["colour"] == (0 if not late else pytest.approx(late // 4, abs=2))
    assert set(found.within_context.values()) == {1.0} and set(found.new[-1].values()) == {1.0}
    assert all(set(shares.values()) == {0.0} for shares in found.old[late // 4 :])
    if late:
        assert found.new[0]["colour"] == 0 < found.old[0]["colour"]


def test_a_switch_that_is_never_followed_is_not_called_followed(obedient):
    found = switch_report(obedient(late=1000), streams=4)
    assert set(found.follows_after.values()) == {None} and set(found.within_context.values()) == {0.0}


@pytest.mark.parametrize(
    ("units", "window", "frames"),
    [
        ("frame", None, 3),
        ("frame", 1, 1),
        ("frame", 0, 1),
        ("cube(2, 2, 2)", 4, 2),
        ("cube(2, 2, 2)", 7, 4),
        ("multiscale(1x1, 2x2)", 3, 4),
    ],
)
def test_a_context_is_counted_in_latent_frames(units, window, frames):
    assert context_frames(tiny_sprites(units, window=window)) == frames


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc on this system")
def test_memory_is_read():
    # Not by allocating: what is freed elsewhere meanwhile may be more than that.
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert abs(memory_in_use(torch.device("cpu")) - pages * mmap.PAGESIZE) < 2**24 < pages * mmap.PAGESIZE


def test_the_commands_write_reports_and_pictures(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    tiny_sprites("frame", window=2).save_pretrained(tmp_path / "model")
    for name, rest in (("stream", ["--frames", 60]), ("switch", ["--contexts", 1, "--before", 6])):
        given = ["--model", tmp_path / "model", "--streams", 2, *rest, "--steps", 1]
        files = ["--report", tmp_path / f"{name}.json", "--plot", tmp_path / f"{name}.png"]
        done = CliRunner().invoke(app, ["evaluate", name, *map(str, given + files)])
        assert done.exit_code == 0, done.output
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert found["streams"] == 2 and found["sampling"]["steps"] == 1
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert set(found["follows_after"]) == set(ATTRIBUTES)


def test_too_short_streams_are_refused():
    with pytest.raises(ValueError, match=f"at least {WINDOW} frames, got 16"):
        stream_report(tiny_sprites(), frames=16)
    with pytest.raises(ValueError, match=f"at least {WINDOW} frames before the switch, got 13"):
        switch_report(tiny_sprites(), before=4)


@pytest.mark.parametrize(
    ("units", "before", "ends"),
    [
        ("cube(2, 2, 2)", 7, "2, 4"),
        ("multiscale(1x1, 2x2)", 6, "4"),
        ("key_detail(2)", 6, "4"),
    ],
)
def test_a_switch_within_a_unit_is_refused(units, before, ends):
    with pytest.raises(
        ValueError, match=f"end of a unit's frames, {ends} latent frames into a clip of 4, got {before}"
    ):
        switch_report(tiny_sprites(units), before=before)
    with pytest.raises(ValueError, match="expected contexts >= 1, got 0"):
        switch_report(tiny_sprites(units), contexts=0)


def test_a_switch_at_the_end_of_a_slab_is_taken_up_there(monkeypatch):
    switched = []
    monkeypatch.setattr(UnitDecoder, "switch", lambda self, *_: switched.append(self.cache.committed))
    switch_report(tiny_sprites("cube(2, 2, 2)"), streams=1, before=6, contexts=1, window=1)
    assert switched == [12], "units of a clip and of a slab"
