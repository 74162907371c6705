"""The streaming decoder beside diffusers' own: latent by latent equals whole, and streams do not meet."""

from __future__ import annotations

import copy

import pytest
import torch
from host_copies import DEVICE, HostCopies

from videoar.next_unit.wan_vae import WanVideoAutoencoder

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

MEAN, STD = [0.3, -0.2, 0.1, 0.5], [1.5, 0.7, 2.0, 1.1]
EQUAL, WRONG = 1e-12, 1e-2


@pytest.fixture(scope="module")
def vae() -> WanVideoAutoencoder:
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, latents_mean=MEAN, latents_std=STD
    )
    return WanVideoAutoencoder(model.double())


def latents(frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, frames, 3, 2, generator=generator, dtype=torch.float64)


@torch.no_grad()
def whole(vae: WanVideoAutoencoder, z: torch.Tensor) -> torch.Tensor:
    """diffusers' own decode, normalisation undone as its pipeline does."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 4, 1, 1, 1) for values in (MEAN, STD))
    return vae.vae.decode(z * std + mean).sample


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().mean())


@pytest.mark.parametrize("sizes", [[4], [1, 1, 1, 1], [1, 3], [3, 1], [2, 2]])
def test_chunk_by_chunk_equals_whole(vae, sizes):
    z, state, parts = latents(4), None, []
    for part in z.split(sizes, dim=2):
        video, state = vae.decode_chunk(part, state)
        parts.append(video)
    assert [part.shape[2] for part in parts] == [4 * n - 3 * (i == 0) for i, n in enumerate(sizes)]
    assert parts[0].shape[3:] == (24, 16)
    assert distance(torch.cat(parts, dim=2), whole(vae, z)) < EQUAL


def test_a_chunk_waits_for_nothing_that_the_host_copies(vae):
    there, chunk, state = WanVideoAutoencoder(copy.deepcopy(vae.vae).to(DEVICE)), latents(1).to(DEVICE), None
    for number in range(3):
        with HostCopies() as copies:
            state = there.decode_chunk(chunk, state).state
        assert copies.found == ["tensor"] * 2 * (number == 0), "once what undoes the normalisation"


def test_a_forgotten_state_is_seen(vae):
    z = latents(2)
    first, second = z.split(1, dim=2)
    _, state = vae.decode_chunk(first)
    _, other = vae.decode_chunk(latents(1, seed=1))
    right = vae.decode_chunk(second, state).video
    assert distance(right, whole(vae, z)[:, :, 1:]) < EQUAL
    assert distance(vae.decode_chunk(second, other).video, right) > WRONG
    assert vae.decode_chunk(second).video.shape[2] == 1


def test_streams_share_a_model_and_a_state_serves_twice(vae):
    one, two = latents(3), latents(3, seed=1)
    states, videos = [None, None], [[], []]
    for i in range(3):
        for stream, z in enumerate((one, two)):
            before = states[stream]
            video, states[stream] = vae.decode_chunk(z[:, :, i : i + 1], before)
            assert torch.equal(vae.decode_chunk(z[:, :, i : i + 1], before).video, video)
            videos[stream].append(video)
    for parts, z in zip(videos, (one, two), strict=True):
        assert distance(torch.cat(parts, dim=2), whole(vae, z)) < EQUAL


def test_latents_are_the_normalised_mean(vae):
    video = torch.rand(1, 3, 9, 16, 24, dtype=torch.float64) * 2 - 1
    found = vae.encode(video)
    assert found.shape == (1, 4, 3, 2, 3)
    assert torch.equal(found, vae.encode(video))
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 4, 1, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        expected = (vae.vae.encode(video).latent_dist.mean - mean) / std
    assert distance(found, expected) < EQUAL


def test_a_model_is_read_from_diffusers_folder(vae, tmp_path):
    vae.vae.save_pretrained(tmp_path / "vae")
    again = WanVideoAutoencoder.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(again.decode(latents(2)), vae.decode(latents(2)))


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda vae, path: vae.encode(torch.zeros(1, 3, 7, 16, 16)), ValueError, r"expected video \(B, 3, 4 n \+ 1"),
        (
            lambda vae, path: vae.decode_chunk(torch.zeros(1, 4, 0, 2, 2)),
            ValueError,
            r"expected latents \(B, C, n >= 1",
        ),
        (lambda vae, path: WanVideoAutoencoder.from_pretrained(path), FileNotFoundError, r"has no config\.json"),
    ],
)
def test_what_does_not_fit_is_named(vae, tmp_path, call, error, said):
    with pytest.raises(error, match=said):
        call(vae, tmp_path)
