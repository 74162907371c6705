"""Video files that are missing, damaged or something else: an error names each; none crashes."""

from __future__ import annotations

import pickle
import random

import pytest
import torch
from video_files import KINDS, make_audio, make_video

from videoar.data.video import VideoError, probe_video, read_last_frames, read_video


def test_missing_empty_and_wrong_files_are_named_with_the_reason(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.mp4").write_text("not a video " * 100)
    (tmp_path / "text.png").write_text("not an image " * 100)
    (tmp_path / "folder.mp4").mkdir()
    make_audio(tmp_path / "sound.m4a", "aac")
    make_audio(tmp_path / "sound.wav", "pcm_s16le")
    for name, reason in {
        "missing.mp4": "does not exist",
        "empty.mp4": "is empty",
        "empty.png": "is empty",
        "text.mp4": "cannot be decoded: ",
        "text.png": "not an image",
        "folder.mp4": "is not a file",
        "sound.m4a": "has no video stream",
        "sound.wav": "has no video stream",
    }.items():
        for read in (read_video, probe_video, lambda path: read_last_frames(path, 3)):
            with pytest.raises(VideoError, match=f"{name}: .*{reason}"):
                read(tmp_path / name)


def test_errors_survive_the_way_from_a_loader_worker():
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "is empty")))
    assert isinstance(error, VideoError) and str(error) == "a.mp4: is empty" and error.reason == "is empty"


@pytest.mark.parametrize("kind", [*KINDS, ("libx264", "faststart.mp4")], ids="-".join)
def test_truncated_files_give_true_frames_or_an_error(tmp_path, kind):
    codec, suffix = kind
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (30, 32, 32, 3), generator=generator, dtype=torch.uint8)
    options = {"movflags": "+faststart"} if "faststart" in suffix else None
    path = make_video(tmp_path / f"a.{suffix}", noise, codec=codec, container_options=options)
    whole, data = read_video(path).frames, path.read_bytes()
    cut, survived = tmp_path / f"cut.{suffix}", 0
    for length in [*range(1, 40, 7), *range(40, len(data), max(len(data) // 16, 1)), len(data) - 1]:
        cut.write_bytes(data[:length])
        for wanted in (None, 5):
            try:
                frames = read_video(cut, wanted).frames
            except VideoError as error:
                assert str(cut) in str(error)
                continue
            assert len(frames) <= (wanted or 30)
            # A bare stream does not say how long its last frame is; a decoder makes do with a part of it.
            sure = len(frames) - (suffix in ("ts", "h264", "mpg"))
            assert torch.equal(frames[:sure], whole[:sure])
            survived += 1
    assert survived > 0 or suffix in ("mp4", "mov")  # their table of frames stands at the end


@pytest.mark.parametrize("seed", range(8))
def test_random_and_damaged_bytes_never_crash(tmp_path, seed):
    rng = random.Random(seed)
    original = make_video(tmp_path / "a.mp4", 12).read_bytes()
    for suffix in ("mp4", "avi", "mkv", "gif", "png", "jpg", "webm"):
        for content in (rng.randbytes(rng.randint(1, 5000)), _damaged(original, rng, 20), _damaged(original, rng, 300)):
            path = tmp_path / f"b.{suffix}"
            path.write_bytes(content)
            try:
                frames = read_video(path, size=16).frames
            except VideoError as error:
                assert str(path) in str(error)
            else:
                assert frames.shape[1:] == (16, 16, 3) and 1 <= len(frames) <= 100


def _damaged(data: bytes, rng: random.Random, count: int) -> bytes:
    data = bytearray(data)
    for _ in range(count):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


@pytest.mark.parametrize(
    "options", [dict(frames=0), dict(fps=0), dict(fps=-1), dict(start=-1), dict(start=float("nan"))]
)
def test_wrong_arguments_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match="read_video: expected"):
        read_video(make_video(tmp_path / "a.mp4", 3), **options)
