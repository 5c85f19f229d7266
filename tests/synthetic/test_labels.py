import pytest
import torch

from fastdistill.synthetic.distilled import load_file
from fastdistill.synthetic.labels import image_classes

ROWS = torch.full((18, 9), 0.5)


def changed(place, value, rows=ROWS):
    rows = rows.clone()
    rows[place] = value
    return rows


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (ROWS[:17], r"expected labels \[18\], or soft ones \[18, 9\] or \[2, 18, 9\], got \(17, 9\): give every"),
        (ROWS[:, :8], r"got \(18, 8\)"),
        (ROWS.expand(3, -1, -1), r"\[2, 18, 9\], got \(3, 18, 9\)"),
        (ROWS.expand(2, 2, -1, -1), r"got \(2, 2, 18, 9\)"),
        (ROWS[0, 0], r"got \(\)"),
        (ROWS[:, 0], r"expected int64 labels in 0 to 8, got torch\.float32"),
        (ROWS.long(), r"expected soft labels as floats of 16, 32 or 64 bits, got torch\.int64"),
        (ROWS.to(torch.float8_e5m2), r"got torch\.float8_e5m2"),
        (ROWS + 0j, r"got torch\.complex64"),
        (changed((3, 4), torch.nan), "expected finite soft labels, got NaN or infinity in 1 of 18 rows"),
        (changed((1, 3), torch.inf, ROWS.expand(2, -1, -1)), "got NaN or infinity in 1 of 36 rows"),
        (changed((0, 0), -0.25), "expected soft labels of at least 0, got -0.25: clip them at 0"),
    ],
)
def test_what_are_no_labels_is_refused(build, labels, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(runs=2, labels=labels)
    assert "\n" not in str(caught.value)


def test_no_classes_have_no_labels(build):
    with pytest.raises(ValueError, match=r"got \(18, 0\)"):
        build(labels=ROWS[:, :0], class_names=())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(18, 9), (2, 18, 9)])
def test_rows_are_saved_and_loaded_bit_by_bit(build, difference, soft_rows, tmp_path, shape, dtype):
    distilled = build(runs=2, labels=soft_rows(*shape, dtype=dtype))
    distilled.save(tmp_path / "d.safetensors")
    found = load_file(tmp_path / "d.safetensors")
    assert difference(found, distilled) == []
    assert (found.labels.shape, found.soft) == (shape, True)


def test_rows_of_zeros_are_labels(build):
    assert not build(labels=torch.zeros(18, 9)).labels.any()


def test_a_run_has_its_own_rows(build):
    own, shared = build(runs=3, soft=(3, 18, 9)), build(runs=3, soft=(18, 9))
    assert torch.equal(own.run(2).labels, own.labels[2:])
    assert shared.run(2).labels is shared.labels
    assert torch.equal(own.run(1).run(0).labels, own.labels[1:2])


def test_a_soft_label_of_the_data_set_is_the_first_runs_row(build):
    for shape in ((18, 9), (2, 18, 9)):
        distilled = build(runs=2, soft=shape)
        image, row = distilled[7]
        assert torch.equal(image, distilled.images[0, 7])
        assert torch.equal(row, distilled.labels.reshape(-1, 18, 9)[0, 7])


def test_images_with_soft_labels_stand_in_the_order_of_the_classes(build):
    assert build(soft=(18, 9)).classes.tolist() == [label // 2 for label in range(18)]
    assert image_classes(torch.zeros(3, 6, 2)).tolist() == [0, 0, 0, 1, 1, 1]
    hard = build()
    assert hard.classes is hard.labels
    assert not hard.soft
