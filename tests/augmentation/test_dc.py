import pytest
import torch
from scipy.ndimage import rotate

from fastdistill.augmentation import dc
from fastdistill.draws import Purpose, uniform

STUDENTS = torch.arange(4)


def pictures(count=30, size=(8, 10), seed=0):
    return torch.randn(4, count, 2, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def apply(x, strategy, step=0, students=STUDENTS):
    return dc.augment(
        x, dc.parse_strategy(strategy), seed=2, purpose=Purpose.EVALUATION_AUGMENTATION, step=step, students=students
    )


def numbers(count, step=0):
    return uniform(2, Purpose.EVALUATION_AUGMENTATION, step, STUDENTS, 3 * count).view(4, 3, count)


def test_crop_reads_a_padded_image():
    x = pictures()
    found, u = apply(x, "crop"), numbers(30)
    for k in range(4):
        mean = x[k].mean((0, 2, 3))
        for i in range(30):
            padded = mean[:, None, None].expand(2, 16, 18).clone()
            padded[:, 4:12, 4:14] = x[k, i]
            row, column = int(u[k, 1, i] * 8), int(u[k, 2, i] * 8)
            expected = padded[:, row : row + 8, column : column + 10]
            assert torch.allclose(found[k, i], expected, rtol=1e-12)


def test_scale_resizes_by_nearest_neighbours_and_centres():
    x = pictures(size=(9, 9))
    found, u = apply(x, "scale"), numbers(30)
    for k in range(4):
        for i in range(30):
            high, wide = (int((0.8 + 0.4 * float(u[k, a, i])) * 9) for a in (1, 2))
            resized = torch.nn.functional.interpolate(x[k, i][None].float(), (high, wide))[0].double()
            side = max(high, wide, 9)
            canvas = torch.zeros(2, side, side, dtype=torch.float64)
            top, left = (side - high) // 2, (side - wide) // 2
            canvas[:, top : top + high, left : left + wide] = resized
            cut = (side - 9) // 2
            assert torch.allclose(found[k, i], canvas[:, cut : cut + 9, cut : cut + 9], atol=1e-6), (k, i, high, wide)


@pytest.mark.parametrize("size", [(1, 5), (1, 1), (5, 1)])
def test_scale_keeps_a_pixel_of_tiny_images(size):
    x = torch.ones(4, 30, 1, *size, dtype=torch.float64)
    found = apply(x, "scale")
    assert ((found == 0) | (found == 1)).all()
    assert found.flatten(2).sum(-1).min() >= 1


def drawn_angles(count):
    return torch.floor(numbers(count)[:, 1] * 90) - 45


def test_rotation_keeps_the_middle_and_turns_by_the_drawn_angle():
    x = torch.zeros(4, 20, 1, 33, 33, dtype=torch.float64)
    x[..., 16, 16] = 1.0
    x[..., 16, 26] = 1.0  # ten pixels to the right of the centre
    found, angles = apply(x, "rotate"), torch.deg2rad(drawn_angles(20).double())
    background = x[0].mean()
    for k in range(4):
        for i in range(20):
            picture = found[k, i, 0] - background
            assert picture[16, 16] > 0.8
            rows, columns = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
            outside = ((rows - 16) ** 2 + (columns - 16) ** 2) > 36
            mass = (picture * outside).clamp_min(0.2) - 0.2
            row, column = (mass * rows).sum() / mass.sum() - 16, (mass * columns).sum() / mass.sum() - 16
            # a positive angle turns counterclockwise, as scipy's do, and rows count downwards
            assert abs(float(torch.atan2(-row.double(), column.double()) - angles[k, i])) < 0.06


@pytest.mark.parametrize("size", [(7, 12), (9, 9)])
def test_rotation_is_scipys(size):
    height, width = size
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    # bicubic convolution and scipy's cubic spline are different interpolators: they agree only on smooth pictures, and
    # there within 0.025 for every angle, where a turn by −angle instead is 0.18 or more away
    smooth = torch.sin(0.3 * rows + 0.2 * columns)
    x = smooth.expand(4, 5, 1, -1, -1)
    found, angles, mean = apply(x, "rotate"), drawn_angles(5), float(smooth.mean())
    # within this radius of the centre no angle reads a pixel outside, which both fill in their own way
    radius = ((rows - (height - 1) / 2) ** 2 + (columns - (width - 1) / 2) ** 2).sqrt()
    interior = (radius <= min(size) / 2 - 1.5).numpy()
    assert interior.sum() >= 4
    compared = 0
    for k in range(4):
        for i in range(5):
            grown = rotate(smooth.numpy(), float(angles[k, i]), axes=(-2, -1), cval=mean)
            above, left = ((new - old) / 2 for new, old in zip(grown.shape, size, strict=True))
            if above != int(above) or left != int(left):
                continue  # the published cut lies half a pixel beside the centre
            expected = grown[int(above) : int(above) + height, int(left) : int(left) + width]
            error = abs(found[k, i, 0].numpy() - expected)[interior].max()
            assert error < 0.03, (k, i, float(angles[k, i]), error)
            compared += abs(float(angles[k, i])) > 10
    assert compared >= 3


def test_noise_is_small_and_keyed():
    x = pictures()
    found = apply(x, "noise")
    change = found - x
    assert 0.0008 < float(change.std()) < 0.0012
    assert torch.equal(apply(x, "noise"), found)
    assert not torch.equal(apply(x, "noise", step=1), found)


def test_every_image_draws_one_operation():
    x = pictures()
    alone = {name: apply(x, name) for name in ("crop", "scale", "rotate")}
    mixed = apply(x, "crop_scale_rotate")
    chosen = (numbers(30)[:, 0] * 3).long()
    assert set(chosen.flatten().tolist()) == {0, 1, 2}
    for k in range(4):
        for i in range(30):
            name = ("crop", "scale", "rotate")[int(chosen[k, i])]
            assert torch.equal(mixed[k, i], alone[name][k, i])


def test_a_student_draws_the_same_in_any_batch():
    x = pictures()
    together = apply(x, "crop_scale_rotate_noise")
    assert torch.equal(apply(x[2:3], "crop_scale_rotate_noise", students=STUDENTS[2:3])[0], together[2])


def test_unknown_operations_are_named():
    with pytest.raises(ValueError, match="expected operations among crop, scale, rotate, noise, got 'flip'"):
        dc.parse_strategy("crop_flip")
