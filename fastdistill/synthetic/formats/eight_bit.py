"""Images as 8-bit pixels and back, what that loses, and their PNG files."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fastdistill.data.normalization import Normalization
from fastdistill.data.zca import whiten
from fastdistill.synthetic.distilled import Distilled

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names by the number of channels
MAX_PIXELS = 4096 * 4096  # a small file can claim a huge picture


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What 8 bits lose.

    Attributes:
        clipped: share of values that lie beyond the range of real pixels by more than half a level.
        psnr: peak signal-to-noise ratio in dB of the 8-bit pixels against the exact ones, peak being the range of the
            real pixels; infinite where nothing is lost.
    """

    clipped: float
    psnr: float


def to_levels(distilled: Distilled) -> Tensor:
    """The images as pixels of 256 levels between the lowest and the highest real pixel.

    Returns:
        uint8 ``[R, N, D, H, W]``; values beyond the range are clipped.

    Raises:
        ValueError: when a value is not finite or the pixel range is none.
    """
    levels = _levels(distilled)
    if not bool(levels.isfinite().all()):
        raise ValueError(
            "expected finite images to write as 8-bit pixels, got NaN or infinity: export to safetensors or pt, or "
            "distil again"
        )
    return levels.round().clamp(0, 255).to(torch.uint8)


def from_levels(levels: Tensor, normalization: Normalization, pixel_range: tuple[float, float]) -> Tensor:
    """Normalised images of uint8 levels ``[R, N, D, H, W]``, float32 of the same shape."""
    low, _ = pixel_range
    pixels = levels.double() * (_span(pixel_range) / 255) + low
    if normalization.whitening is not None:
        return whiten(pixels, normalization.whitening).float()
    mean, std = (pixels.new_tensor(values).view(-1, 1, 1) for values in (normalization.mean, normalization.std))
    return ((pixels - mean) / std).float()


def eight_bit(distilled: Distilled) -> Distilled:
    """The same set with images as they come back from 8-bit pixels."""
    normalization = distilled.normalization.to("cpu")
    return replace(distilled, images=from_levels(to_levels(distilled), normalization, distilled.pixel_range))


def loss_of_eight_bits(distilled: Distilled) -> Loss:
    """How much of the images 8-bit pixels lose."""
    levels = _levels(distilled)
    error = (levels - levels.round().clamp(0, 255)).square().mean().item()
    return Loss(
        clipped=((levels < -0.5) | (levels > 255.5)).double().mean().item(),
        psnr=10 * math.log10(255**2 / error) if error > 0 else math.inf,
    )


def check_channels(channels: int) -> None:
    """Refuses images that no PNG can hold.

    Raises:
        ValueError: for other than 1, 3 or 4 channels.
    """
    if channels not in MODES:
        raise ValueError(
            f"expected images of 1, 3 or 4 channels to write as PNG, got {channels}: export to safetensors or pt"
        )


def encode_png(pixels: Tensor) -> bytes:
    """A PNG file of uint8 pixels ``[D, H, W]``."""
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    buffer = BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()


def png_limit(shape: tuple[int, int, int]) -> int:
    """More bytes than any PNG file of pixels ``[D, H, W]`` needs, its remarks included."""
    return 2 * math.prod(shape) + (1 << 20)


def decode_png(content: bytes, shape: tuple[int, int, int]) -> Tensor:
    """The uint8 pixels ``[D, H, W]`` of a PNG file; nothing is decoded before its header has that shape.

    Raises:
        ValueError: when it is damaged, of another shape or over `MAX_PIXELS`.
    """
    channels, height, width = shape
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as picture:
            if picture.size != (width, height) or picture.mode != MODES.get(channels):
                raise ValueError(f"it is {picture.size[0]} x {picture.size[1]} pixels of mode {picture.mode}")
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS}")
            array: npt.NDArray[np.uint8] = np.array(picture)
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise ValueError(
            f"expected a PNG picture of {width} x {height} pixels of mode {MODES.get(channels)}, got another ({error})"
        ) from error
    return torch.from_numpy(array.reshape(height, width, channels)).permute(2, 0, 1)


def _levels(distilled: Distilled) -> Tensor:
    low, _ = distilled.pixel_range
    pixels = distilled.normalization.to("cpu").invert(distilled.images.double().cpu())
    return (pixels - low) * (255 / _span(distilled.pixel_range))


def _span(pixel_range: tuple[float, float]) -> float:
    """The width of the range; 1 where all real pixels are the same."""
    low, high = pixel_range
    if not math.isfinite(high - low) or high < low:
        raise ValueError(f"expected a finite range of real pixels, got {low} to {high}: export to safetensors or pt")
    return high - low or 1.0
