import math

import pytest
import torch
from PIL import Image

from fastdistill.data.normalization import Normalization
from fastdistill.synthetic.formats.eight_bit import (
    check_channels,
    decode_png,
    eight_bit,
    encode_png,
    from_levels,
    loss_of_eight_bits,
    to_levels,
)

IDENTITY = Normalization(mean=(0.0,), std=(1.0,))


def levels_of(distilled):
    """Exact levels, not rounded, in float64."""
    low, high = distilled.pixel_range
    return (distilled.normalization.invert(distilled.images.double()) - low) * 255 / (high - low)


def test_pixels_stay_within_half_a_level(kind):
    exact, lossy = levels_of(kind).clamp(0, 255), levels_of(eight_bit(kind))
    slack = 1e-3 if kind.normalization.whitening else 1e-4  # images are float32; whitening multiplies their rounding
    assert (exact - lossy).abs().max() <= 0.5 + slack
    assert (lossy - lossy.round()).abs().max() <= slack


def test_eight_bits_lose_nothing_twice(kind):
    once = eight_bit(kind)
    assert torch.equal(to_levels(once), to_levels(kind))
    assert torch.equal(eight_bit(once).images, once.images)
    found = loss_of_eight_bits(once)
    assert found.clipped == 0
    assert found.psnr > 90


def test_the_loss_is_that_of_the_textbook(build):
    images = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, 0.25, 1.001, -0.001]).view(1, 1, 1, 2, 4)
    distilled = build(
        images=images, labels=torch.zeros(1, dtype=torch.int64), class_names=("a",), normalization=IDENTITY
    )
    found = loss_of_eight_bits(distilled)
    assert found.clipped == 2 / 8  # those within half a level of the range are rounded, not clipped
    back = eight_bit(distilled).images
    mse = (back.double() - images.double()).square().mean().item()
    assert found.psnr == pytest.approx(10 * math.log10(1 / mse), abs=1e-6)
    whole = build(
        images=torch.tensor([[0.0, 1.0]]).view(1, 1, 1, 1, 2),
        labels=torch.zeros(1, dtype=torch.int64),
        class_names=("a",),
        normalization=IDENTITY,
    )
    assert loss_of_eight_bits(whole).psnr == math.inf


def test_float_units_use_all_levels():
    levels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 1, 1, 1, 3)
    images = from_levels(levels, Normalization(mean=(1.0,), std=(2.0,)), (-3.0, 7.0))
    assert images.flatten().tolist() == [-2.0, 3.0, -1.0]


def test_one_real_value_is_a_range_too(build):
    flat = build(channels=1, floats=True, pixel_range=(0.5, 0.5))
    assert eight_bit(flat).images.isfinite().all()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_images_that_are_no_numbers_are_refused(build, broken):
    distilled = build()
    distilled.images[0, 0, 0, 0, 0] = broken
    with pytest.raises(ValueError, match="expected finite images to write as 8-bit pixels, got NaN or infinity"):
        to_levels(distilled)
    with pytest.raises(ValueError, match=r"expected a finite range of real pixels, got 0\.0 to inf"):
        to_levels(build(pixel_range=(0.0, math.inf)))


@pytest.mark.parametrize("shape", [(1, 3, 5), (3, 1, 1), (4, 7, 2)])
def test_png_keeps_every_pixel(shape):
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(decode_png(encode_png(pixels), shape), pixels)


@pytest.mark.parametrize("channels", [2, 5, 0])
def test_other_channels_are_no_png(channels):
    with pytest.raises(ValueError, match=f"got {channels}: export to safetensors or pt"):
        check_channels(channels)


def test_other_pictures_are_refused_before_they_are_decoded(monkeypatch):
    pixels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    whole = encode_png(pixels)
    decoded = []
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self))
    for content, shape in [
        (whole, (1, 4, 5)),
        (whole, (3, 4, 4)),
        (_claiming(whole, 60_000, 60_000), (1, 4, 4)),
        (_claiming(whole, 5000, 5000), (1, 5000, 5000)),
        (whole[:20], (1, 4, 4)),
        (b"GIF89a" + bytes(20), (1, 4, 4)),
    ]:
        with pytest.raises(ValueError, match="expected a PNG picture of"):
            decode_png(content, shape)
    assert not decoded


def test_a_cut_picture_is_refused():
    whole = encode_png(torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8))
    with pytest.raises(ValueError, match="expected a PNG picture of 16 x 16"):
        decode_png(whole[:-60], (3, 16, 16))


def _claiming(png, width, height):
    """The same file with another size in its header."""
    import zlib

    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]
