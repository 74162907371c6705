"""Videos written: read back as they were, whole or absent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from video_files import close, grey_frames, numbers

from videoar.data.video import VideoError, read_video, write_video


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "gif"])
@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 64)])
def test_what_is_written_is_read_back(tmp_path, suffix, size):
    frames = grey_frames(17, *size)
    path = write_video(tmp_path / "new" / f"a.{suffix}", frames, 12.5)
    clip = read_video(path)
    even = size if suffix == "gif" else (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert clip.frames.shape == (17, *even, 3)
    assert close(numbers(clip.frames), list(range(17)))
    assert clip.fps == pytest.approx(12.5, rel=1e-3)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
@pytest.mark.parametrize("rgb", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 255, 255), (0, 0, 0)])
def test_colours_survive(tmp_path, suffix, rgb):
    frames = torch.tensor(rgb, dtype=torch.uint8).expand(3, 32, 32, 3)
    back = read_video(write_video(tmp_path / f"a.{suffix}", frames, 10)).frames
    assert (back.int() - frames.int()).abs().max() <= 4


def test_frames_may_come_one_by_one_as_arrays_or_tensors(tmp_path):
    frames = grey_frames(6)
    for kind in (frames, frames.numpy(), list(frames), (frame.numpy() for frame in frames)):
        assert numbers(read_video(write_video(tmp_path / "a.mp4", kind, 5)).frames) == list(range(6))


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_a_failure_midway_leaves_nothing_and_keeps_what_was_there(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"

    def broken():
        yield from grey_frames(5)
        raise RuntimeError("model failed")

    with pytest.raises(RuntimeError, match="model failed"):
        write_video(path, broken(), 10)
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"one shape, got \(48, 64, 3\) and \(2, 2, 3\)"):
        write_video(path, [*grey_frames(2), *grey_frames(1, 2, 2)], 10)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_written_is_said(tmp_path):
    frames = grey_frames(2)
    (tmp_path / "file").touch()
    for path, reason in {
        "a.txt": "has a suffix other than",
        "file/a.mp4": "cannot be written",
        "file/a.gif": "cannot be written",
    }.items():
        with pytest.raises(VideoError, match=f"{path}: {reason}"):
            write_video(tmp_path / path, frames, 10)
    (tmp_path / "dir.mp4").mkdir()
    with pytest.raises(VideoError, match="is a folder"):
        write_video(tmp_path / "dir.mp4", frames, 10)
    with pytest.raises(VideoError, match="at most 50 frames per second"):
        write_video(tmp_path / "a.gif", frames, 60)
    for bad in (frames.float(), frames[..., :1], frames[:, :0], frames[:0], np.zeros((3, 4, 3))):
        with pytest.raises(ValueError, match="write_video: expected"):
            write_video(tmp_path / "a.mp4", bad, 10)
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="expected fps > 0"):
            write_video(tmp_path / "a.mp4", frames, fps)
    assert not list(tmp_path.glob("*a.*"))
