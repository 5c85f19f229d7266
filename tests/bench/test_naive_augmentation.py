from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bench.naive.augmentation import OPERATIONS, diff_augment, operations_of, siamese


def random_images(n: int = 2, channels: int = 3, height: int = 8, width: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, channels, height, width, generator=generator, dtype=torch.float64)


def draw(*numbers: float) -> Tensor:
    return torch.tensor([*numbers, 0.5, 0.5, 0.5][:3], dtype=torch.float64)


def test_operations_of_splits_a_strategy() -> None:
    assert operations_of("color_crop_cutout_flip_scale_rotate") == OPERATIONS
    assert operations_of("flip") == ("flip",)


def test_unknown_operations_are_refused() -> None:
    with pytest.raises(ValueError, match="got 'blur'"):
        operations_of("color_blur")
    with pytest.raises(ValueError, match="got 'blur'"):
        diff_augment(random_images(), "blur", draw())


def test_color_is_brightness_then_saturation_then_contrast_per_image() -> None:
    x = random_images()
    result = diff_augment(x, "color", draw(0.9, 0.2, 0.7))
    for image, changed in zip(x, result, strict=True):
        bright = image + 0.4
        gray = (bright[0] + bright[1] + bright[2]) / 3
        saturated = torch.stack([gray + 0.4 * (channel - gray) for channel in bright])
        mean = saturated.sum() / saturated.numel()
        torch.testing.assert_close(changed, mean + 1.2 * (saturated - mean), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("uniforms", "shift_y", "shift_x"),
    [((0.0, 0.0), -1, -2), ((0.5, 0.5), 0, 0), ((0.99, 0.99), 1, 2), ((0.1, 0.65), -1, 1), ((0.34, 0.2), 0, -1)],
)
def test_crop_shifts_and_fills_with_zeros(uniforms: tuple[float, float], shift_y: int, shift_x: int) -> None:
    x = random_images()
    expected = torch.zeros_like(x)
    for row in range(8):
        for column in range(12):
            if 0 <= row + shift_y < 8 and 0 <= column + shift_x < 12:
                expected[:, :, row, column] = x[:, :, row + shift_y, column + shift_x]
    assert torch.equal(diff_augment(x, "crop", draw(*uniforms)), expected)


def test_crop_reach_is_an_eighth_of_the_side_rounded() -> None:
    x = torch.zeros(1, 1, 28, 28)
    x[0, 0, 14, 14] = 1
    for uniforms, row, column in (((0.0, 0.0), 18, 18), ((0.999, 0.999), 10, 10)):
        assert diff_augment(x, "crop", draw(*uniforms))[0, 0, row, column] == 1


def test_the_largest_float32_draw_stays_in_range_of_every_size() -> None:
    largest = torch.full((3,), 1 - 2**-24, dtype=torch.float32)
    x = torch.rand(1, 1, 32, 32)
    expected = torch.zeros_like(x)
    expected[..., :28, :28] = x[..., 4:, 4:]
    assert torch.equal(diff_augment(x, "crop", largest), expected)
    for size in range(2, 100):
        changed = diff_augment(torch.ones(1, 1, size, 1), "crop", largest)
        assert changed.sum() == size - int(0.125 * size + 0.5)


@pytest.mark.parametrize(
    ("uniforms", "rows", "columns"),
    [
        # 8 rows: side 4, centres 0..8; 12 columns: side 6, centres 0..12
        ((0.5, 0.5), range(2, 6), range(3, 9)),
        ((0.0, 0.0), range(0, 2), range(0, 3)),
        ((0.999, 0.999), range(6, 8), range(9, 12)),
        ((0.99, 0.0), range(6, 8), range(0, 3)),
    ],
)
def test_cutout_zeroes_a_square_that_the_border_cuts(
    uniforms: tuple[float, float], rows: range, columns: range
) -> None:
    x = random_images()
    expected = x.clone()
    for row in rows:
        for column in columns:
            expected[:, :, row, column] = 0
    assert torch.equal(diff_augment(x, "cutout", draw(*uniforms)), expected)


def test_cutout_with_an_odd_side_never_centres_outside() -> None:
    x = torch.ones(1, 1, 9, 9)  # side int(.5 * 9 + .5) = 5, centres 0..8
    assert diff_augment(x, "cutout", draw(0.999, 0.999))[0, 0].sum() == 81 - 9
    assert diff_augment(x, "cutout", draw(0.5, 0.5))[0, 0].sum() == 81 - 25


def test_flip_mirrors_columns_below_one_half_only() -> None:
    x = random_images()
    mirrored = torch.stack([x[..., 11 - column] for column in range(12)], dim=-1)
    assert torch.equal(diff_augment(x, "flip", draw(0.49)), mirrored)
    assert torch.equal(diff_augment(x, "flip", draw(0.5)), x)


def bilinear_at(image: Tensor, row: float, column: float) -> Tensor:
    total = torch.zeros(image.shape[0], dtype=torch.float64)
    for y in (math.floor(row), math.floor(row) + 1):
        for x in (math.floor(column), math.floor(column) + 1):
            if 0 <= y < image.shape[1] and 0 <= x < image.shape[2]:
                total += image[:, y, x] * (1 - abs(row - y)) * (1 - abs(column - x))
    return total


def resample(x: Tensor, matrix: tuple[float, float, float, float], align_corners: bool) -> Tensor:
    """Sample by loops: output position -> [-1, 1] coordinates -> matrix -> input position."""
    height, width = x.shape[2:]
    result = torch.empty_like(x)
    for row in range(height):
        for column in range(width):
            if align_corners:
                across, down = 2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1
            else:
                across, down = (2 * column + 1) / width - 1, (2 * row + 1) / height - 1
            across, down = matrix[0] * across + matrix[1] * down, matrix[2] * across + matrix[3] * down
            if align_corners:
                source = ((down + 1) / 2 * (height - 1), (across + 1) / 2 * (width - 1))
            else:
                source = (((down + 1) * height - 1) / 2, ((across + 1) * width - 1) / 2)
            for image, changed in zip(x, result, strict=True):
                changed[:, row, column] = bilinear_at(image, *source)
    return result


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("uniforms", [(0.1, 0.8), (0.95, 0.3)])
def test_scale_samples_a_stretched_grid(uniforms: tuple[float, float], align_corners: bool) -> None:
    x = random_images()
    low = 1 / 1.2
    horizontal, vertical = (low + number * (1.2 - low) for number in uniforms)
    expected = resample(x, (horizontal, 0, 0, vertical), align_corners)
    result = diff_augment(x, "scale", draw(*uniforms), align_corners=align_corners)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("uniform", [0.0, 0.3, 0.9])
def test_rotate_samples_a_turned_grid(uniform: float, align_corners: bool) -> None:
    x = random_images()
    angle = math.radians(30 * uniform - 15)
    matrix = (math.cos(angle), math.sin(-angle), math.sin(angle), math.cos(angle))
    result = diff_augment(x, "rotate", draw(uniform), align_corners=align_corners)
    torch.testing.assert_close(result, resample(x, matrix, align_corners), rtol=1e-10, atol=1e-10)


def test_rotation_by_zero_and_scale_by_one_are_the_identity() -> None:
    x = random_images()
    one = (1 - 1 / 1.2) / (1.2 - 1 / 1.2)
    torch.testing.assert_close(diff_augment(x, "rotate", draw(0.5)), x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(diff_augment(x, "scale", draw(one, one)), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_treat_images_alike_and_are_differentiable(operation: str) -> None:
    x = random_images(2, 2, 4, 5)
    uniforms = draw(0.3, 0.8, 0.6)
    separate = torch.cat([diff_augment(image[None], operation, uniforms) for image in x])
    torch.testing.assert_close(diff_augment(x, operation, uniforms), separate, rtol=1e-13, atol=1e-13)
    assert torch.autograd.gradcheck(lambda images: diff_augment(images, operation, uniforms), x.requires_grad_())


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("images_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("draw_dtype", [torch.float32, torch.float64])
def test_the_images_keep_their_type(operation: str, images_dtype: torch.dtype, draw_dtype: torch.dtype) -> None:
    x = random_images().to(images_dtype)
    result = diff_augment(x, operation, draw(0.25, 0.75, 0.625).to(draw_dtype))
    assert result.dtype == images_dtype
    expected = diff_augment(random_images(), operation, draw(0.25, 0.75, 0.625))
    tolerance = 1e-5 if images_dtype == torch.float32 else 1e-13
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


def test_siamese_looks_its_class_up() -> None:
    x = random_images()
    uniforms = torch.stack([draw(0.1), draw(0.9), draw(0.0, 0.0)])
    augment = siamese(["flip", "flip", "crop"], uniforms)
    assert torch.equal(augment(x, 0), x.flip(3))
    assert torch.equal(augment(x, 1), x)
    assert torch.equal(augment(x, 2), diff_augment(x, "crop", uniforms[2]))
