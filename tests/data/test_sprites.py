"""The built-in sprites: what is drawn is what the caption says, and what `measure` sees is what was drawn."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from videoar.data.captions import COLOURS, DIRECTIONS, SHAPES, SPEEDS, Attributes, combinations
from videoar.data.sprites import (
    SpriteConfig,
    SpriteDataset,
    caption_of,
    clip,
    draw_parameters,
    heldout_captions,
    measure,
    measure_batch,
    parse_caption,
    sample_batch,
)


@pytest.fixture(scope="module")
def clips():
    return sample_batch(320, seed=11, split="all")


def accuracy(videos, attributes):
    """Share of clips measured right, per attribute."""
    seen = [m.attributes for m in measure_batch(videos)]
    return {
        name: sum(getattr(s, name) == getattr(a, name) for s, a in zip(seen, attributes, strict=True)) / len(seen)
        for name in Attributes._fields
    }


def blurred(videos, sigma):
    reach = int(3 * sigma + 0.5)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1).float() ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    x = videos.permute(0, 1, 4, 2, 3).float()
    flat = F.pad(x.reshape(-1, 1, *x.shape[-2:]), [reach] * 4, mode="replicate")
    flat = F.conv2d(F.conv2d(flat, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return flat.view_as(x).permute(0, 1, 3, 4, 2).round().to(torch.uint8)


def noisy(videos, sigma):
    noise = torch.randn(videos.shape, generator=torch.Generator().manual_seed(0))
    return (videos + sigma * noise).round().clamp(0, 255).to(torch.uint8)


def compressed(videos, step):
    """Quantize 8 x 8 cosine coefficients to multiples of `step`, as a video codec does."""
    k = torch.arange(8.0)
    cosine = torch.cos(torch.pi / 8 * (k[None, :] + 0.5) * k[:, None]) / 2
    cosine[0] /= 2**0.5
    x = videos.permute(0, 1, 4, 2, 3).float().unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-2, -3)
    x = cosine.T @ ((cosine @ x @ cosine.T / step).round() * step) @ cosine
    x = x.transpose(-2, -3).flatten(-2).flatten(-3, -2)
    return x.permute(0, 1, 3, 4, 2).round().clamp(0, 255).to(torch.uint8)


def test_clips_have_the_advertised_shape_and_type(clips):
    assert clips.video.shape == (320, 17, 64, 64, 3) and clips.video.dtype == torch.uint8
    assert clips.mask.shape == (320, 17, 64, 64) and clips.mask.dtype == torch.float32
    video, caption = clip(3, 11, split="all")
    assert torch.equal(video, clips.video[3]) and caption == clips.captions[3]


def test_true_clips_are_measured_right(clips):
    for name, share in accuracy(clips.video, clips.attributes).items():
        assert share >= 0.99, (name, share)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda v: blurred(v, 1.0), id="blur"),
        pytest.param(lambda v: noisy(v, 10.0), id="noise"),
        pytest.param(lambda v: noisy(blurred(v, 1.5), 10.0), id="blur-and-noise"),
        pytest.param(lambda v: compressed(v, 60.0), id="codec"),
    ],
)
def test_spoilt_clips_are_still_measured_right(clips, spoil):
    for name, share in accuracy(spoil(clips.video[:96]), clips.attributes[:96]).items():
        assert share >= 0.97, (name, share)


def test_every_attribute_keeps_still_through_a_true_clip(clips):
    for m in measure_batch(clips.video[:32]):
        assert m.colour_kept == 1 and m.shape_kept == 1 and m.overlap > 0.95


def test_a_change_of_sprite_inside_a_clip_is_seen():
    one, other = sample_batch(16, seed=1).video, sample_batch(16, seed=2).video
    kept = measure_batch(torch.cat([one[:, :9], other[:, 9:]], 1))
    assert sum(m.colour_kept for m in kept) / 16 < 0.75


@pytest.mark.parametrize(
    "video",
    [
        pytest.param(torch.full((17, 64, 64, 3), 120), id="grey"),
        pytest.param(torch.zeros(17, 64, 64, 3), id="black"),
        pytest.param(torch.full((17, 64, 64, 3), 255), id="white"),
        pytest.param(torch.rand(17, 64, 64, 3, generator=torch.Generator().manual_seed(0)) * 255, id="noise"),
    ],
)
def test_nothing_is_seen_where_there_is_nothing(video):
    assert measure(video.to(torch.uint8)) == Attributes(None, None, None, None)


def test_a_smear_has_no_shape(clips):
    x = clips.video[:64].permute(0, 1, 4, 2, 3).flatten(0, 1).float()
    smear = F.interpolate(F.avg_pool2d(x, 16), scale_factor=16, mode="bilinear")
    smear = smear.view(64, 17, 3, 64, 64).permute(0, 1, 3, 4, 2).to(torch.uint8)
    assert accuracy(smear, clips.attributes[:64])["shape"] <= 0.25


def test_the_average_of_many_clips_shows_nothing(clips):
    assert measure(clips.video.float().mean(0).to(torch.uint8)) == Attributes(None, None, None, None)


def test_a_sprite_that_stands_or_jumps_has_no_direction(clips):
    still = measure_batch(clips.video[:16, :1].expand(-1, 17, -1, -1, -1))
    order = torch.randperm(17, generator=torch.Generator().manual_seed(0))
    jumping = measure_batch(clips.video[:16, order])
    for m in still + jumping:
        assert m.attributes.colour is not None and m.attributes.direction is None and m.attributes.speed is None


def test_a_single_frame_has_colour_and_shape(clips):
    seen = measure(clips.video[0, :1])
    assert seen == clips.attributes[0]._replace(direction=None, speed=None)


def test_measure_says_what_it_expected():
    with pytest.raises(ValueError, match=r"measure: expected video of shape \(T, H, W, 3\), got \(3, 64, 64\)"):
        measure(torch.zeros(3, 64, 64, dtype=torch.uint8))
    with pytest.raises(TypeError, match="expected uint8 video, got torch"):
        measure(torch.zeros(17, 64, 64, 3))


def test_clips_do_not_depend_on_how_they_are_batched(clips):
    parts = [sample_batch(n, seed=11, index=i, split="all") for i, n in ((0, 1), (1, 5), (6, 2))]
    assert torch.equal(torch.cat([p.video for p in parts]), clips.video[:8])
    assert [c for p in parts for c in p.captions] == clips.captions[:8]


def test_seeds_and_indices_give_different_clips():
    first = sample_batch(4, seed=1).video
    assert not torch.equal(first, sample_batch(4, seed=2).video)
    assert not torch.equal(first, sample_batch(4, seed=1, index=4).video)
    assert sample_batch(0, seed=1).video.shape == (0, 17, 64, 64, 3)


def test_the_mask_is_where_the_sprite_is(clips):
    still = (clips.video == clips.video[:, :1]).all(-1).all(1)  # pixels that never change
    touched = (clips.mask > 0.05).any(1) & ~(clips.mask > 0.05).all(1)
    assert (touched & still).float().mean() < 1e-3
    assert (clips.mask.sum((2, 3)) > 100).all() and (clips.mask.sum((2, 3)) < 800).all()


def test_a_sprite_stays_inside_and_moves_as_told():
    config = SpriteConfig()
    p = draw_parameters(4096, seed=0, split="all")
    last = p.start + p.step * (config.frames - 1)
    for centre in (p.start, last):
        assert (centre - p.size[:, None] / 2 >= 0.99).all() and (centre + p.size[:, None] / 2 <= 63.01).all()
    assert p.size.min() >= 20 and p.size.max() <= 28
    angle = torch.atan2(p.step[:, 1], p.step[:, 0]) * 4 / torch.pi
    torch.testing.assert_close(angle.round().remainder(8).long(), p.direction)
    torch.testing.assert_close(angle, angle.round(), atol=1e-5, rtol=0)
    torch.testing.assert_close((last - p.start).norm(dim=1), torch.tensor(config.travel)[p.speed])


def test_every_attribute_is_equally_frequent():
    p = draw_parameters(20000, seed=5, split="all")
    for values, names in zip(p[:4], (COLOURS, SHAPES, DIRECTIONS, SPEEDS), strict=True):
        share = values.bincount(minlength=len(names)) / len(values)
        torch.testing.assert_close(share, torch.full_like(share, 1 / len(names)), atol=0.015, rtol=0)


@pytest.mark.parametrize("size, frames", [(32, 17), (128, 5), (48, 9)])
def test_other_sizes_show_the_same_thing(size, frames):
    batch = sample_batch(24, seed=3, config=SpriteConfig(size=size, frames=frames))
    assert batch.video.shape == (24, frames, size, size, 3)
    for name, share in accuracy(batch.video, batch.attributes).items():
        assert share >= 0.95, (name, share)


def test_a_tenth_of_the_combinations_is_held_out():
    held, trained = set(combinations("heldout")), set(combinations("train"))
    assert len(held) == 26 and len(trained) == 230 and not held & trained
    for one in range(3):
        for other in range(one):
            pairs = Counter((c[other], c[one]) for c in held)
            assert max(pairs.values()) == 1
    assert len(set(heldout_captions())) == 52


def test_training_never_shows_a_held_out_caption():
    held = set(heldout_captions())
    unit = SpriteConfig(frames=1, size=16)
    assert not held & set(sample_batch(4096, seed=0, split="train", config=unit).captions)
    assert held == set(sample_batch(4096, seed=0, split="heldout", config=unit).captions)


def test_captions_can_be_read_back():
    assert caption_of(Attributes("red", "circle", "up-left", "slowly")) == "a red circle moving up-left slowly"
    for caption in heldout_captions():
        assert caption_of(parse_caption(caption)) == caption
    for nonsense in ("a red dog moving up slowly", "a red circle moving sideways slowly", ""):
        with pytest.raises(ValueError, match="parse_caption: expected"):
            parse_caption(nonsense)


def test_ranks_and_workers_share_out_the_clips():
    small = SpriteConfig(frames=2, size=16)
    whole = sample_batch(24, seed=9, config=small).video
    ranks = [SpriteDataset(3, 9, config=small, rank=r, world=2) for r in range(2)]
    steps = [[b.video for b in islice(iter(rank), 4)] for rank in ranks]
    assert torch.equal(torch.cat([steps[r][n] for n in range(4) for r in range(2)]), whole)
    resumed = next(iter(SpriteDataset(3, 9, config=small, rank=1, world=2, start=2)))
    assert torch.equal(resumed.video, steps[1][2])
    loader = DataLoader(ranks[0], batch_size=None, num_workers=2)
    loaded = [b.video for b in islice(iter(loader), 4)]
    assert all(torch.equal(a, b) for a, b in zip(loaded, steps[0], strict=True))


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match='expected split "train", "heldout" or "all", got \'test\''):
        sample_batch(1, seed=0, split="test")
    with pytest.raises(ValueError, match=r"sprite \+ travel <= 62"):
        SpriteConfig(sprite=(40.0, 50.0))


def test_wrapped_clips_go_on_without_end_and_are_measured_right():
    config = SpriteConfig(frames=150, wrap=True)
    clips = sample_batch(24, seed=5, split="all", config=config)
    mass = clips.mask.sum((2, 3))
    assert (mass - mass[:, :1]).abs().max() < 0.02 * mass.max()  # nothing is lost at an edge
    for first in (0, 40, 133):
        seen = measure_batch(clips.video[:, first : first + 17], wrap=True)
        assert [m.attributes for m in seen] == clips.attributes
        assert all(((m.centres >= 0) & (m.centres < 64)).all() for m in seen)
    # The same windows, measured as if nothing wrapped: most sprites are cut somewhere.
    plain = [m.attributes for m in measure_batch(clips.video[:, 40:57])]
    assert sum(a == b for a, b in zip(plain, clips.attributes, strict=True)) < 22


def test_a_longer_wrapped_clip_begins_with_the_shorter_one():
    short, long = (sample_batch(4, 3, config=SpriteConfig(frames=n, wrap=True)) for n in (17, 30))
    assert torch.equal(short.video, long.video[:, :17])
