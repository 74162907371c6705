"""The pipeline: prompts to pixels by any units, folders that hold it, and Wan's own folder."""

from __future__ import annotations

import pytest
import torch
from sharp_backbone import sharpen
from tiny_pipeline import AUTOENCODER, BACKBONE, GRID, tiny_pipeline

from videoar.evaluation.adherence import text_to_video_adherence
from videoar.model_folder import read_json
from videoar.next_unit import UnitDefaults, UnitPipeline, clips_of, parse_units, sample_units
from videoar.next_unit.frames import frames_after, latent_frames
from videoar.tokenizer.autoencoder import VideoAutoencoder

PROMPTS = ["a red circle moving up slowly", "a blue star moving left quickly"]
UNITS = {"frame": 0, "key_detail(2)": 0, "cube(2, 2, 2)": 0, "cube(1, 1, 1)": 0, "multiscale(1x1, 2x2)": 3}
units = pytest.mark.parametrize(("scheme", "levels"), UNITS.items(), ids=UNITS)


@units
def test_a_clip_is_its_units_decoded(scheme, levels):
    pipeline = tiny_pipeline(scheme, levels=levels)
    video = pipeline.generate(PROMPTS, seed=[1, 2])
    assert video.shape == (2, 3, 13, 32, 48) and pipeline.frames == 13 and pipeline.frame_size == (32, 48)
    layout = parse_units(scheme).on(GRID)
    with torch.no_grad():
        text = pipeline.conditioner(PROMPTS)
        options = pipeline.defaults.options
        sampled = sample_units(pipeline.transformer, text, layout, seeds=[1, 2], options=options)
        (latents,) = clips_of(sampled, layout, BACKBONE.patch)
        expected = pipeline.autoencoder.decode(latents).clamp(-1, 1)
    torch.testing.assert_close(video, expected, atol=1e-4, rtol=0)
    assert (expected - pipeline.generate(PROMPTS, seed=[1, 3])).abs().max() > 1e-2


def test_frames_come_out_as_soon_as_no_unit_can_change_them():
    ready = {"frame": (1, 2, 3, 4), "key_detail(3)": (1, 2, 4), "cube(2, 2, 1)": (0, 2, 2, 4), "cube": (0,) * 3 + (2,)}
    assert frames_after(parse_units("frame").on(GRID)) == ready["frame"]
    assert frames_after(parse_units("key_detail(3)").on(GRID)) == ready["key_detail(3)"]
    assert frames_after(parse_units("cube(2, 2, 1)").on(GRID)) == ready["cube(2, 2, 1)"]
    assert frames_after(parse_units("cube").on(GRID))[:4] == ready["cube"]
    assert frames_after(parse_units("multiscale(1x1, 2x2)").on(GRID)) == (0, 0, 4)


@units
def test_frames_put_together_are_the_clips(scheme, levels):
    pipeline = tiny_pipeline(scheme, levels=levels)
    layout, text = pipeline.defaults.layout, pipeline.conditioner(PROMPTS).detach()
    sampled = list(sample_units(pipeline.transformer, text, layout, seeds=[1, 2], clips=2))
    clips = torch.cat(list(clips_of(sampled, layout, BACKBONE.patch)), dim=2)
    assert torch.equal(torch.cat(list(latent_frames(sampled, layout, BACKBONE.patch)), dim=2), clips)


def test_a_seed_and_a_prompt_give_the_same_video_in_any_batch():
    pipeline = tiny_pipeline("cube(2, 2, 2)", guidance=2.0)
    both = pipeline.generate(PROMPTS, seed=7)
    torch.testing.assert_close(both[1:], pipeline.generate(PROMPTS[1:], seed=7), atol=1e-4, rtol=0)
    assert (pipeline.generate(PROMPTS[:1], seed=7) - both[1:]).abs().max() > 1e-2


@pytest.mark.parametrize("frames", [1, 4, 9, 13, 22])
def test_any_number_of_frames_is_the_beginning_of_more(frames):
    """More than a clip is a stream, whose positions are closed up; a window of three frames is a clip's."""
    pipeline = tiny_pipeline("frame", window=3, dtype=torch.float64)
    video = pipeline.generate(PROMPTS, frames=frames, seed=3)
    longer = pipeline.generate(PROMPTS, frames=30, seed=3)
    assert video.shape[2] == frames
    torch.testing.assert_close(video, longer[:, :, :frames], atol=1e-9, rtol=0)


def test_options_given_replace_the_defaults():
    pipeline = tiny_pipeline("frame", steps=1)
    changed = pipeline.generate(PROMPTS, units="cube(2, 2, 2)", steps=3, method="euler", guidance=1.5)
    other = tiny_pipeline("cube(2, 2, 2)", steps=3, method="euler", guidance=1.5).generate(PROMPTS)
    assert torch.equal(changed, other)
    assert torch.equal(pipeline.generate(PROMPTS, steps=None), pipeline.generate(PROMPTS, steps=1))


def test_a_folder_gives_the_same_videos(tmp_path):
    pipeline = tiny_pipeline("multiscale(1x1, 2x2)", levels=3, window=2, guidance=2.0, wrap=True)
    pipeline.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "autoencoder",
        "sampling.json",
        "text",
        "transformer",
    ]
    again = UnitPipeline.from_pretrained(tmp_path / "model")
    assert again.defaults == pipeline.defaults
    assert torch.equal(again.generate(PROMPTS, seed=1), pipeline.generate(PROMPTS, seed=1))
    assert read_json(tmp_path / "model" / "sampling.json")["units"] == "multiscale(1x1, 2x2)"


def test_a_folder_that_cannot_be_written_whole_stays_as_it_was(tmp_path):
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "model")
    before = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}
    pipeline.pack(torch.float32)
    with pytest.raises(ValueError, match="save_pretrained: expected a model as it was trained"):
        pipeline.save_pretrained(tmp_path / "model")
    assert {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_adherence_is_measured_through_the_same_call():
    class Asked:
        def generate(self, prompts, *, seed, **options):
            assert options == {"steps": 1} and len(seed) == len(prompts)
            return torch.zeros(len(prompts), 3, 5, 64, 64)

    assert text_to_video_adherence(Asked(), prompts=6, batch=4, steps=1).clips == 6
    found = text_to_video_adherence(tiny_pipeline(), prompts=2, wrap=True, steps=1)
    assert found.clips == 2 and set(found.right) == {"colour", "shape", "direction", "speed"}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: p.generate(PROMPTS, frames=0), "at least one frame"),
        (lambda p: p.generate(PROMPTS, seed=[1]), "expected 2 seeds"),
        (lambda p: p.generate(PROMPTS, units="line"), "parse_units: expected"),
        (lambda p: p.generate(PROMPTS, method="jump"), "expected method"),
        (lambda p: UnitPipeline(VideoAutoencoder(AUTOENCODER), p.transformer, _narrow(p)), "features of width 12, got"),
        (
            lambda p: UnitPipeline(VideoAutoencoder(_wide(AUTOENCODER)), p.transformer, p.conditioner),
            "autoencoder of 3 channels, got 5",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call(tiny_pipeline())


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected sampling\.json"):
        UnitPipeline.from_pretrained(tmp_path)


def _narrow(pipeline):
    conditioner = type(pipeline.conditioner)
    return conditioner(type(pipeline.conditioner.config)(("a",), width=4))


def _wide(config):
    return type(config)(**{**vars(config), "latent_channels": 5})


def test_wans_own_folder_is_read_and_written_again(wan_folder, tmp_path):
    defaults = UnitDefaults("cube(2, 2, 2)", (2, 2, 2), steps=1, guidance=2.0)
    pipeline = UnitPipeline.from_wan(wan_folder, defaults)
    assert pipeline.frames == 5 and pipeline.frame_size == (32, 32)
    video = pipeline.generate(["a blue star moving up"], seed=1)
    assert video.shape == (1, 3, 5, 32, 32) and video.std() > 0
    pipeline.save_pretrained(tmp_path / "model")
    assert torch.equal(
        UnitPipeline.from_pretrained(tmp_path / "model").generate(["a blue star moving up"], seed=1), video
    )
    assert not torch.equal(pipeline.generate(["a blue star"], seed=1), video)


@pytest.fixture
def wan_folder(tmp_path):
    """Wan's four parts, tiny and random, as diffusers lays them out."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    folder, words = tmp_path / "wan", ["<pad>", "</s>", "<unk>", "a", "blue", "star", "moving", "up"]
    backbone = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    )
    sharpen(backbone)
    backbone.save_pretrained(folder / "transformer")
    vae = diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    vae.save_pretrained(folder / "vae")
    sizes = {"vocab_size": len(words), "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    transformers.UMT5EncoderModel(transformers.UMT5Config(**sizes)).save_pretrained(folder / "text_encoder")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "tokenizer")
    return folder
