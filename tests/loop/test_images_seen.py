import pytest

from fastdistill.loop.images_seen import images_seen
from fastdistill.loop.sizes import Sizes
from fastdistill.options import parse_run

SIZES = Sizes(shape=(1, 8, 8), classes=(100,) * 10, test=10)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dc/digits-1", "--method.real_batch=16", "--data.validation_fraction=0"], 160 + 10),
        (["dc/digits-1", "--method.real_batch=500", "--data.validation_fraction=0.1"], 900 + 10),
        (["dc/mnist-10", "--method.real_batch=16", "--method.outer_loop=2", "--method.inner_loop=4"], 160 + 100 * 3),
        (["dm/mnist-1", "--method.real_batch=8"], 80 + 10),
        (["mtt/digits-1-cpu", "--method.inner_steps=7"], 70),
        (["ift/digits-1-cpu", "--method.real_batch=50", "--method.inner_steps=3"], 50 + 30),
        # 30 inner steps, of which a window of 10 ends anywhere from the 10th on
        (["rat/digits-1-cpu", "--method.real_batch=64"], 64 + 20 * 10),
    ],
)
def test_students_see_real_and_synthetic_images(words, expected):
    assert images_seen(parse_run(words), SIZES) == expected
