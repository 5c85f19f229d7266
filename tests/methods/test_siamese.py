"""How students of a class-wise method see images, and the way back, in float64."""

import pytest
import torch

from fastdistill.augmentation import dsa
from fastdistill.methods.siamese import Siamese

RUNS, PER_RUN, CLASSES, IPC, SHAPE = 2, 3, 2, 2, (1, 8, 8)


def make(augmentation):
    strategy = dsa.Strategy.parse(augmentation)
    return Siamese(strategy, classes=CLASSES, per_run=PER_RUN, seed=1)


def images(runs):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(runs, CLASSES, IPC, *SHAPE, generator=generator, dtype=torch.float64)


def test_images_that_nothing_tells_apart_have_no_student_axis():
    siamese, pixels = make("none"), images(1)
    assert siamese.draw(0, torch.arange(3)) is None
    shown, pull = siamese.synthetic(pixels, 0, 3, None)
    assert torch.equal(shown, pixels[0]) and siamese.seen(pixels, None) is pixels
    assert torch.equal(pull(torch.ones(3, *pixels.shape[1:])), 3 * torch.ones_like(pixels).float())


@pytest.mark.parametrize("augmentation", ["none", "color_crop_flip_scale_rotate"])
@pytest.mark.parametrize(("start", "count"), [(0, 6), (1, 4), (3, 3)])
def test_the_way_back_is_the_transpose_of_the_way_there(augmentation, start, count):
    siamese, pixels = make(augmentation), images(RUNS)
    draw = siamese.draw(5, torch.arange(start, start + count))
    shown, pull = siamese.synthetic(pixels, start, count, draw)
    own = pixels[torch.arange(start, start + count) // PER_RUN]
    assert torch.allclose(shown, siamese.seen(own, draw), rtol=0, atol=1e-12)
    generator = torch.Generator().manual_seed(3)
    cotangent = torch.randn(shown.shape, generator=generator, dtype=torch.float64)
    leaf = pixels.clone().requires_grad_()
    seen = siamese.seen(leaf[torch.arange(start, start + count) // PER_RUN], draw)
    (expected,) = torch.autograd.grad((seen * cotangent).sum(), leaf)
    assert (pull(cotangent) - expected).norm() <= 1e-10 * expected.norm()
