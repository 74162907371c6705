"""Video files read: each kind gives the right frames, whole, in parts and from any start."""

from __future__ import annotations

import struct

import av
import pytest
import torch
from PIL import Image
from video_files import CLIPS, KINDS, STEP, close, grey_frames, make_video, numbers

from videoar.data import video_decoder
from videoar.data.video import VideoError, probe_video, read_image, read_last_frames, read_video, write_video


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(kind))
def any_video(request, tmp_path):
    codec, suffix = request.param
    return make_video(tmp_path / f"clip.{suffix}", 50, codec=codec)


def test_every_format_and_codec_gives_every_frame(any_video):
    clip = read_video(any_video)
    assert clip.frames.dtype == torch.uint8 and clip.frames.shape == (50, 48, 64, 3)
    assert close(numbers(clip.frames), list(range(50)))
    assert clip.fps == pytest.approx(25)


def test_any_start_gives_the_same_frames_as_reading_from_the_beginning(any_video):
    whole = read_video(any_video).frames
    for first in (1, 7, 8, 23, 46, 49):
        for fps in (None, 25.0):
            part = read_video(any_video, 5, start=first / 25, fps=fps).frames
            assert torch.equal(part, whole[first : first + 5])


def test_last_frames_are_the_last_frames(any_video):
    whole = read_video(any_video).frames
    for count in (1, 5, 50):
        assert torch.equal(read_last_frames(any_video, count), whole[-count:])
    assert torch.equal(read_last_frames(any_video, 90), whole)


@pytest.mark.parametrize(
    "fps, expected", [(25, [0, 1, 2, 3]), (12.5, [0, 2, 4, 6]), (50, [0, 0, 1, 1]), (10, [0, 2, 5, 7])]
)
def test_resampling_shows_what_is_on_display_at_each_time(tmp_path, fps, expected):
    clip = read_video(make_video(tmp_path / "a.mp4"), 4, fps=fps)
    assert numbers(clip.frames) == expected and clip.fps == fps


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate_is_resampled_by_timestamps_not_by_counting(tmp_path, suffix):
    times = [0, 0.04, 0.08, 0.5, 0.9, 0.94, 1.5, 1.54]
    path = make_video(tmp_path / f"a.{suffix}", len(times), times=times, b_frames=0)
    expected = [max(j for j in range(len(times)) if times[j] <= i / 10 + 1e-4) for i in range(15)]
    assert numbers(read_video(path, 15, fps=10).frames) == expected
    assert numbers(read_video(path, 3, fps=10, start=0.6).frames) == expected[6:9]
    assert numbers(read_video(path).frames) == list(range(len(times)))


def test_millisecond_timestamps_neither_repeat_nor_drop_frames(tmp_path):
    path = make_video(tmp_path / "a.mkv", 50, fps=30)
    assert numbers(read_video(path, fps=30).frames) == list(range(50))
    assert numbers(read_video(path, fps=15).frames) == list(range(0, 50, 2))


def test_reading_ends_with_the_file_and_says_so_by_fewer_frames(tmp_path):
    path = make_video(tmp_path / "a.mp4", 10)
    assert len(read_video(path, 17).frames) == 10
    assert numbers(read_video(path, 17, fps=25, start=0.28).frames) == [7, 8, 9]
    with pytest.raises(VideoError, match=r"a\.mp4: ends before 5 seconds"):
        read_video(path, 17, start=5)


def test_long_videos_are_not_decoded_beyond_what_is_asked(tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", grey_frames(2000, 16, 16) % 251, gop=10)
    decoded, original = [], video_decoder.decoded_frames
    monkeypatch.setattr(
        video_decoder, "decoded_frames", lambda *a: (decoded.append(1) or frame for frame in original(*a))
    )
    read_video(path, 17, start=70.0, fps=25)
    read_last_frames(path, 5)
    assert len(decoded) < 150


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (33, 47), (5, 3), (48, 64)])
def test_odd_and_tiny_sizes_are_read_and_scaled(tmp_path, size):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("rawvideo", rate=10)
        stream.height, stream.width, stream.pix_fmt = *size, "bgr24"
        for pixels in grey_frames(3, *size).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    assert read_video(tmp_path / "a.avi").frames.shape == (3, *size, 3)
    small = read_video(tmp_path / "a.avi", size=(8, 16)).frames
    assert small.shape == (3, 8, 16, 3) and numbers(small) == [0, 1, 2]


def test_scaling_keeps_the_centre_and_the_aspect(tmp_path):
    frames = torch.zeros(2, 40, 80, 3, dtype=torch.uint8)
    frames[:, 10:30, 30:50] = 255  # a square in the middle of a wide frame
    write_video(tmp_path / "a.mp4", frames, 10)
    square = read_video(tmp_path / "a.mp4", size=20).frames[0, ..., 0].float()
    inside = square > 128
    assert inside.any(1).nonzero().flatten().tolist() == list(range(5, 15))
    assert inside.any(0).nonzero().flatten().tolist() == list(range(5, 15))


def test_scaling_down_is_antialiased(tmp_path):
    stripes = torch.arange(64) % 2 * 255
    frames = stripes.to(torch.uint8)[None, None, :, None].expand(1, 64, 64, 3)
    Image.fromarray(frames[0].numpy()).save(tmp_path / "a.png")
    grey = read_image(tmp_path / "a.png", size=16).float()
    assert (grey[:, 2:-2] - 127.5).abs().max() < 8


def test_non_square_pixels_are_made_square(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 2
        container.mux(stream.encode(av.VideoFrame.from_ndarray(grey_frames(1, 32, 32)[0].numpy(), format="rgb24")))
        container.mux(stream.encode(None))
    assert read_video(tmp_path / "a.mp4").frames.shape == (1, 32, 64, 3)


def test_phone_videos_are_turned_upright(tmp_path):
    frames = torch.zeros(3, 32, 64, 3, dtype=torch.uint8)
    frames[:, :, :32] = 255
    path = write_video(tmp_path / "a.mp4", frames, 10)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # ISO 14496-12, 8.3.2
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30)
    path.write_bytes(data)
    upright = read_video(path).frames  # turned by 90 degrees clockwise: what was left is at the top
    assert upright.shape == (3, 64, 32, 3)
    assert upright[:, :28].min() > 240 and upright[:, 36:].max() < 15


def test_frame_size_may_change_midway_if_a_size_is_given(tmp_path):
    for name, size in (("a", (32, 32)), ("b", (48, 64))):
        make_video(tmp_path / f"{name}.ts", 5, size=size)
    both = tmp_path / "both.ts"
    both.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    try:
        assert read_video(both, size=16).frames.shape[1:] == (16, 16, 3)
    except VideoError as error:
        assert "both.ts" in str(error)
    with pytest.raises(VideoError, match=r"both\.ts"):
        read_video(both)


def test_a_damaged_timestamp_does_not_fill_memory_with_repeats(tmp_path):
    path = make_video(tmp_path / "a.mkv", 6, times=[0, 0.04, 0.08, 9e6, 9e6 + 0.04, 9e6 + 0.08], b_frames=0)
    data = bytearray(path.read_bytes())
    duration = data.index(b"\x44\x89\x88") + 3  # Matroska's Duration, milliseconds
    data[duration : duration + 8] = struct.pack(">d", 240.0)
    path.write_bytes(data)
    assert numbers(read_video(path, 2, fps=25).frames) == [0, 1]
    with pytest.raises(VideoError, match=r"a\.mkv: is damaged: there is nothing to show from 0\.12 to 9000000"):
        read_video(path, fps=25)


def test_audio_beside_the_video_is_ignored(tmp_path):
    path = make_video(tmp_path / "a.mp4", 10, audio="aac")
    assert numbers(read_video(path).frames) == list(range(10))
    assert numbers(read_last_frames(path, 3)) == [7, 8, 9]


# Images


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_an_image_is_a_video_of_one_frame(tmp_path, suffix, mode):
    if suffix == "jpg" and mode in ("RGBA", "P"):
        mode = "CMYK"
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (30, 20), (10, 200, 90)).convert(mode).save(path)
    clip = read_video(path, 17, size=16)
    assert clip.frames.shape == (1, 16, 16, 3)
    assert torch.equal(clip.frames[0], read_image(path, size=16))
    assert torch.equal(clip.frames, read_last_frames(path, 5, size=16))


def test_photographs_are_turned_upright(tmp_path):
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (40, 20, 3)


# Real clips

REAL = {
    "ucf101_ApplyEyeMakeup.avi": (164, 240, 320, 25),
    "pool.mp4": (32, 256, 340, 30),
    "nasa_13013.mp4": (325, 180, 320, 25),
    "wolf.mp4": (40, 512, 512, 20),
}


@pytest.mark.parametrize("name", REAL)
def test_real_clips_are_read_whole_and_in_parts(name):
    path, (count, height, width, fps) = CLIPS / name, REAL[name]
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    info = probe_video(path)
    assert (info.height, info.width, info.fps) == (height, width, fps)
    whole = read_video(path, size=24)
    assert whole.frames.shape == (count, 24, 24, 3)
    for first in (0, 3, count // 2):
        part = read_video(path, 17, size=24, fps=fps, start=first / fps).frames
        assert torch.equal(part[:14], whole.frames[first : first + 14])
    assert torch.equal(read_last_frames(path, 5, size=24), whole.frames[-5:])


assert STEP * 50 < 256
