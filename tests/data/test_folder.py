"""A folder of clips trains whatever lies in it, the same way each time, and says what it skipped."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
import warnings

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from video_files import CLIPS, make_audio, make_video, numbers

from videoar.data.folder import FolderDataset, VideoFolder
from videoar.data.sprites import sample_batch
from videoar.data.video import VideoError


@pytest.fixture
def folder(tmp_path):
    """Six readable files of different sizes, rates, codecs and depths."""
    (tmp_path / "walk" / "deep").mkdir(parents=True)
    make_video(tmp_path / "walk" / "long_one.mp4", 60)
    make_video(tmp_path / "walk" / "deep" / "odd.avi", 40, codec="mpeg4", size=(34, 90), fps=10)
    make_video(tmp_path / "short.mkv", 3)
    make_video(tmp_path / "one.webm", 1, codec="libvpx")
    times = [0, 0.1, 0.15, 0.5, 0.9, 1.0, 1.6, 1.7]
    make_video(tmp_path / "variable.mkv", 8, times=times, b_frames=0)
    Image.new("RGB", (50, 30), (200, 10, 10)).save(tmp_path / "still.png")
    (tmp_path / "notes.md").write_text("not a clip")
    (tmp_path / ".hidden.mp4").write_bytes(b"x")
    return tmp_path


def test_every_kind_of_file_becomes_a_window_of_one_shape(folder):
    data = VideoFolder(folder, frames=9, size=(16, 24))
    assert len(data) == 6
    batch = data.sample_batch(40, seed=1)
    assert batch.video.shape == (40, 9, 16, 24, 3) and batch.video.dtype == torch.uint8
    assert set(batch.paths) == set(data.clips)


def test_windows_are_consecutive_and_cover_the_clip(folder):
    data = VideoFolder(folder / "walk", frames=5, size=16)
    starts = set()
    for window, path in zip(*data.sample_batch(300, seed=0)[::2], strict=True):
        seen = numbers(window)
        if path.name == "long_one.mp4":
            assert seen == list(range(seen[0], seen[0] + 5))
            starts.add(seen[0])
    assert min(starts) == 0 and 53 <= max(starts) <= 55 and len(starts) > 45


def test_resampling_gives_all_clips_one_rate(folder):
    data = VideoFolder(folder, frames=4, size=16, fps=5.0)
    for window, path in zip(*data.sample_batch(60, seed=3)[::2], strict=True):
        seen = numbers(window)
        if path.name == "long_one.mp4":
            assert [b - a for a, b in itertools.pairwise(seen)] == [5, 5, 5]
        if path.name == "odd.avi":
            assert all(abs(b - a - 2) <= 1 for a, b in itertools.pairwise(seen))


def test_short_clips_and_images_hold_their_last_frame(folder):
    data = VideoFolder(folder, frames=6, size=16)
    windows = {path.name: window for window, path in zip(*data.sample_batch(60, seed=0)[::2], strict=True)}
    assert numbers(windows["short.mkv"]) == [0, 1, 2, 2, 2, 2]
    assert (windows["still.png"] == windows["still.png"][:1]).all()
    assert (windows["one.webm"] == windows["one.webm"][:1]).all()


def test_a_batch_depends_on_seed_and_index_only(folder):
    data, again = VideoFolder(folder, size=16), VideoFolder(folder, size=16)
    again.sample_batch(3, seed=9)
    whole = data.sample_batch(12, seed=5, index=7)
    assert torch.equal(whole.video, again.sample_batch(12, seed=5, index=7).video)
    assert torch.equal(whole.video[4:], again.sample_batch(8, seed=5, index=11).video)
    other = data.sample_batch(12, seed=6, index=7)
    assert other.paths != whole.paths or not torch.equal(other.video, whole.video)


def test_clips_in_memory_give_the_same_windows_as_files(folder):
    kept, streamed = VideoFolder(folder, size=16, fps=20), VideoFolder(folder, size=16, fps=20, memory=0)
    for step in range(3):
        assert torch.equal(kept.sample_batch(8, 0, 8 * step).video, streamed.sample_batch(8, 0, 8 * step).video)
    assert kept.bytes_kept > 0 and streamed.bytes_kept == 0


def test_memory_is_bounded(folder):
    data = VideoFolder(folder, size=16, memory=40_000)
    data.sample_batch(60, seed=0)
    assert 0 < data.bytes_kept <= 40_000


def test_batches_are_like_those_of_the_sprites(folder):
    ours, theirs = VideoFolder(folder, frames=17, size=64).sample_batch(2, 0), sample_batch(2, 0)
    assert ours.video.shape == theirs.video.shape and ours.video.dtype == theirs.video.dtype
    assert len(ours.captions) == len(theirs.captions) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_workers_deal_out_the_same_steps(folder, workers):
    data = VideoFolder(folder, frames=3, size=8)
    loader = DataLoader(FolderDataset(data, 2, seed=4, start=3), batch_size=None, num_workers=workers)
    for step, batch in zip(range(3, 7), loader, strict=False):
        assert torch.equal(batch.video, data.sample_batch(2, 4, 2 * step).video)


def test_ranks_see_different_clips(folder):
    data = VideoFolder(folder, frames=3, size=8)
    first, second = (next(iter(FolderDataset(data, 4, 0, rank=rank, world=2))) for rank in (0, 1))
    assert torch.equal(torch.cat([first.video, second.video]), data.sample_batch(8, 0).video)


def test_a_folder_can_be_sent_to_another_process(folder):
    data = VideoFolder(folder, size=8)
    expected = data.sample_batch(4, 0).video
    assert torch.equal(pickle.loads(pickle.dumps(data)).sample_batch(4, 0).video, expected)


# Captions


def test_captions_come_from_where_they_are_asked_for(folder):
    (folder / "short.txt").write_text("a short\n clip \n")
    rows = [{"file_name": "walk/long_one.mp4", "text": "listed"}, {"file_name": "still.png", "caption": "a still"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")

    def captions(source: str) -> dict[str, str]:
        batch = VideoFolder(folder, size=8, captions=source).sample_batch(80, 0)
        return {path.name: caption for path, caption in zip(batch.paths, batch.captions, strict=True)}

    assert set(captions("none").values()) == {""}
    assert captions("name")["long_one.mp4"] == "long one"
    assert captions("folder")["long_one.mp4"] == "walk" and captions("folder")["odd.avi"] == "deep"
    assert captions("sidecar")["short.mkv"] == "a short clip" and captions("sidecar")["still.png"] == ""
    assert captions("metadata")["still.png"] == "a still" and captions("metadata")["short.mkv"] == ""
    auto = captions("auto")
    assert auto["long_one.mp4"] == "listed" and auto["short.mkv"] == "a short clip" and auto["odd.avi"] == ""


@pytest.mark.parametrize("line", ["not json", '{"text": "no file"}', '{"file_name": "a.mp4"}', "[1]"])
def test_a_malformed_caption_list_is_named_with_its_line(folder, line):
    (folder / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "fine"}\n' + line)
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 2: expected"):
        VideoFolder(folder, captions="metadata")


def test_unknown_options_are_refused(folder):
    with pytest.raises(ValueError, match=r"captions='metadata' needs .*metadata\.jsonl"):
        VideoFolder(folder, captions="metadata")
    for options in (dict(frames=0), dict(fps=0), dict(captions="guess")):
        with pytest.raises(ValueError, match="VideoFolder: expected"):
            VideoFolder(folder, **options)
    with pytest.raises(ValueError, match="expected batch >= 1"):
        VideoFolder(folder).sample_batch(0, 0)


# Bad files


def test_bad_files_are_skipped_with_one_warning_that_names_them(folder):
    (folder / "empty.mp4").touch()
    (folder / "text.png").write_text("no image")
    make_audio(folder / "sound.mov", "aac")
    with pytest.warns(UserWarning, match=r"skipped 3 of 9 files: .*empty\.mp4: is empty") as caught:
        data = VideoFolder(folder, size=8)
    assert len(caught) == 1 and "text.png" in str(caught[0].message) and "sound.mov" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.sample_batch(30, 0).video.shape[0] == 30


def test_a_file_that_breaks_off_is_skipped_where_it_is_broken(folder):
    whole = make_video(folder / "cut.avi", 60, codec="mpeg4", gop=1).read_bytes()
    (folder / "cut.avi").write_bytes(whole[: len(whole) // 2])
    data = VideoFolder(folder, frames=5, size=8, memory=0)
    with pytest.warns(UserWarning, match=r"VideoFolder: skipped .*cut\.avi: is (damaged or )?truncated") as caught:
        first = data.sample_batch(60, 0)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(data.sample_batch(60, 0).video, first.video)


def test_an_error_says_when_no_file_is_left(tmp_path):
    with pytest.raises(VideoError, match="holds no video and no image"):
        VideoFolder(tmp_path)
    with pytest.raises(VideoError, match="is not a folder"):
        VideoFolder(tmp_path / "missing")
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").write_text("x")
    with pytest.raises(VideoError, match=r"holds no file that can be read, of 2; the first: .*a\.mp4: is empty"):
        VideoFolder(tmp_path)
    (tmp_path / "a.mp4").unlink()
    path = make_video(tmp_path / "c.mp4", 5)
    with pytest.warns(UserWarning):
        data = VideoFolder(tmp_path, size=8)
    path.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(VideoError, match="has no file left that can be read, of 1"):
        data.sample_batch(1, 0)


def test_the_real_clips_train(tmp_path):
    if not CLIPS.is_dir():
        pytest.skip(f"{CLIPS} is not on this machine")
    for name in ("ucf101_ApplyEyeMakeup.avi", "pool.mp4"):
        shutil.copy(CLIPS / name, tmp_path)
    data = VideoFolder(tmp_path, size=32)
    assert data.sample_batch(4, 0).video.shape == (4, 17, 32, 32, 3)
