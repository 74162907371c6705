"""An inflated image tokenizer is the image tokenizer on a still video."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tokenizer.lively import PLAIN, lively

from videoar.tokenizer.inflate import inflate_2d, inflate_kernel

IMAGE = replace(PLAIN, strides=((1, 2), (1, 2)), time_kernels=((1, 1),) * 3)


@pytest.mark.parametrize("padding", ["zero", "replicate"])
@torch.no_grad()
def test_on_a_still_video_every_frame_is_the_image(padding):
    image_model, video_model = lively(IMAGE), lively(replace(PLAIN, time_padding=padding))
    assert inflate_2d(video_model, image_model.state_dict()) == []
    image = torch.rand(2, 3, 1, 16, 16) * 2 - 1
    latent = image_model.encode(image)
    still = video_model.encode(image.expand(-1, -1, 9, -1, -1))
    torch.testing.assert_close(still, latent.expand_as(still), atol=1e-5, rtol=0)
    decoded = video_model.decode(latent.expand(-1, 5, -1, -1, -1))
    torch.testing.assert_close(decoded, image_model.decode(latent).expand_as(decoded), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_kernel_in_another_tap_is_not_the_image():
    image_model, video_model = lively(IMAGE), lively(PLAIN)
    inflate_2d(video_model, image_model.state_dict())
    for parameter in video_model.parameters():
        if parameter.ndim == 5:
            parameter.copy_(parameter.roll(1, 2))
    image = torch.rand(1, 3, 1, 16, 16)
    still = video_model.encode(image.expand(-1, -1, 5, -1, -1))
    assert (still - image_model.encode(image)).abs().max() > 0.1


def test_the_image_kernel_stands_last():
    kernel = torch.randn(4, 3, 2, 2)
    inflated = inflate_kernel(kernel, 3)
    assert torch.equal(inflated[:, :, 2], kernel)
    assert not inflated[:, :, :2].any()


def test_a_name_that_the_video_model_lacks_is_refused():
    with pytest.raises(ValueError, match=r"no encoder\.attention"):
        inflate_2d(lively(PLAIN), {"encoder.attention": torch.zeros(1)})
