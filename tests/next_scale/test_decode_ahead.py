"""Pixels that are decoded beside the steps of the next frame: who waits for whom, and that they are the same."""

from __future__ import annotations

from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

from videoar import decode_ahead as module
from videoar import step_graphs
from videoar.decode_ahead import decode_ahead
from videoar.profiling.subject import Options, preset_subject


class FakeCuda:
    """Streams that do nothing but write down what is asked of them."""

    def __init__(self, monkeypatch) -> None:
        self.log, self.made = [], 0
        self.current = self.default = FakeStream(self, "steps")
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        monkeypatch.setattr(torch.cuda, "Stream", self.stream)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        module._beside.cache_clear()

    def stream(self, device) -> FakeStream:
        self.made += 1
        return FakeStream(self, "beside")

    @contextmanager
    def on(self, stream):
        self.current = stream
        yield
        self.current = self.default

    def latents(self, count: int):
        for number in range(count):
            self.log.append(f"{self.current.name} make {number}")
            yield FakeTensor(self, f"chunk {number}")

    def decode(self, chunk, state):
        self.log.append(f"{self.current.name} decodes {chunk.name} after {state}")
        return Decoded(FakeTensor(self, f"pixels of {chunk.name}"), f"state of {chunk.name}")


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")


class FakeTensor:
    is_cuda, device = True, torch.device("cuda", 0)

    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def clamp(self, low, high) -> FakeTensor:
        return self

    def record_stream(self, stream: FakeStream) -> None:
        self.cuda.log.append(f"{self.name} is used by {stream.name}")


class Decoded(NamedTuple):
    video: FakeTensor
    state: str


def test_a_chunk_is_decoded_beside_the_steps_of_the_next_one(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    for pixels in decode_ahead(cuda.latents(2), cuda.decode):
        cuda.log.append(f"got {pixels.name}")
    assert cuda.log == [
        "steps make 0", "beside waits for steps", "beside decodes chunk 0 after None", "chunk 0 is used by beside",
        "steps make 1", "steps waits for beside", "pixels of chunk 0 is used by steps", "got pixels of chunk 0",
        "beside waits for steps", "beside decodes chunk 1 after state of chunk 0", "chunk 1 is used by beside",
        "steps waits for beside", "pixels of chunk 1 is used by steps", "got pixels of chunk 1",
    ]  # fmt: skip


def test_all_clips_are_decoded_on_one_stream_also_after_one_that_is_left_early(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    left = decode_ahead(cuda.latents(3), cuda.decode)
    next(left)
    left.close()
    assert [pixels.name for pixels in decode_ahead(cuda.latents(2), cuda.decode)] == [
        "pixels of chunk 0", "pixels of chunk 1",
    ]  # fmt: skip
    assert cuda.made == 1 and cuda.current is cuda.default
    assert cuda.log.count("beside decodes chunk 0 after None") == 2, "a clip begins without the state of another"


@pytest.fixture(autouse=True)
def forget_streams():
    yield
    module._beside.cache_clear()


@pytest.mark.gpu
def test_pixels_of_several_clips_are_those_of_one_stream(monkeypatch):
    pipeline = preset_subject("tiny", Options(device="cuda", dtype=torch.float32)).pipeline

    def plain(seed: int) -> list[torch.Tensor]:
        """Steps run by Python, every latent frame decoded before the next one's steps, nothing left running."""
        state, pixels = None, []
        for frame in pipeline.latents([""], frames=17, seed=seed):
            torch.cuda.synchronize()
            state_and_video = pipeline.tokenizer.decode_chunk(frame.total[:, None], state)
            state = state_and_video.state
            pixels.append(state_and_video.video.clamp(-1, 1))
            torch.cuda.synchronize()
        return pixels

    with monkeypatch.context() as patched:
        patched.setattr(step_graphs, "step_runner", lambda device: step_graphs.run_eagerly)
        expected = [plain(seed) for seed in range(4)]
    pipeline._decoders.clear()
    for seed in (0, 1, 2, 3, 0):
        found = list(pipeline.stream([""], frames=17, seed=seed))
        torch.testing.assert_close(found, expected[seed], rtol=1e-4, atol=1e-4)
        left = pipeline.stream([""], frames=17, seed=seed + 7)
        assert next(left).shape == expected[seed][0].shape
        left.close()
    assert not torch.allclose(expected[0][1], expected[1][1], rtol=1e-4, atol=1e-4)
