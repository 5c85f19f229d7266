import pytest
import torch

from fastdistill.synthetic.formats import pt
from fastdistill.synthetic.formats.pt import stacked_pairs


def plainly(path):
    """As the field's programs load it."""
    return torch.load(path, weights_only=True)


def test_what_is_written_is_read_exactly(kind, difference, tmp_path):
    pt.write(kind, tmp_path, "card")
    assert difference(pt.read(tmp_path), kind) == []


def test_the_field_reads_the_files(build, tmp_path):
    distilled = build(runs=3)
    pt.write(distilled, tmp_path, "card")
    images, labels = plainly(tmp_path / "images.pt"), plainly(tmp_path / "labels.pt")
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(images, distilled.images[0])
    assert torch.equal(labels, distilled.labels)
    saved = plainly(tmp_path / "res_fastdistill_birds_2ipc.pt")
    assert len(saved["data"]) == 3
    for run, (images, labels) in enumerate(saved["data"]):
        assert torch.equal(images, distilled.images[run])
        assert torch.equal(labels, distilled.labels)
    assert saved["accs_all_exps"] == {}
    assert not (tmp_path / "lr.pt").exists()


def test_files_hold_no_more_than_their_tensors(build, tmp_path):
    distilled = build(images=torch.randn(2, 18, 3, 40, 40))
    pt.write(distilled, tmp_path, "card")
    bytes_of_a_run = distilled.images[0].numel() * 4
    assert bytes_of_a_run < (tmp_path / "images.pt").stat().st_size < bytes_of_a_run + 4000


def test_rates_are_one_number_where_they_are_equal(build, tmp_path):
    for name, rates, expected in [
        ("equal", torch.full((3,), 0.25), torch.tensor(0.25)),
        ("other", torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.1, 0.2, 0.3])),
        ("own", torch.tensor([[0.1, 0.2, 0.3], [1.0, 1.0, 1.0]]), torch.tensor([0.1, 0.2, 0.3])),
    ]:
        scheduled = build(scheduled=True).schedule
        distilled = build(runs=2, schedule=type(scheduled)(rates=rates, images=scheduled.images))
        (tmp_path / name).mkdir()
        pt.write(distilled, tmp_path / name, "card")
        assert torch.equal(plainly(tmp_path / name / "lr.pt"), expected)


def test_a_learned_rate_is_one_number(build, tmp_path):
    pt.write(build(runs=2, learning_rate=torch.tensor([0.25, 0.5])), tmp_path, "card")
    assert torch.equal(plainly(tmp_path / "lr.pt"), torch.tensor(0.25))


def test_uneven_classes_have_no_ipc(build, tmp_path):
    pt.write(build(labels=torch.arange(18) % 5), tmp_path, "card")
    assert (tmp_path / "res_fastdistill_birds_18images.pt").is_file()


@pytest.mark.parametrize("shape", [(18, 9), (2, 18, 9)])
def test_the_field_reads_soft_labels(build, tmp_path, shape):
    distilled = build(runs=2, soft=shape)
    pt.write(distilled, tmp_path, "card")
    rows = distilled.labels.expand(2, -1, -1)
    assert torch.equal(plainly(tmp_path / "labels.pt"), rows[0])
    saved = plainly(tmp_path / "res_fastdistill_birds_2ipc.pt")["data"]
    assert all(torch.equal(labels, rows[run]) for run, (_, labels) in enumerate(saved))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: [rows[0], rows[1] * torch.nan], "expected finite soft labels, got NaN or infinity in 18 of 36"),
        (lambda rows: [rows[0], -rows[1]], "expected soft labels of at least 0"),
        (lambda rows: [rows[0], rows[1, :17]], "expected labels of one shape in every run"),
        (lambda rows: [rows[0, :, :8].clone(), rows[1, :, :8].clone()], r"got \(2, 18, 8\)"),
        (lambda rows: [rows[0].clone()] * 2, "expected labels of their own in every run, got shared ones"),
        (lambda rows: [rows[0].expand(9**9, -1, -1)] * 2, "expected labels to hold its .* values, got fewer"),
        (
            lambda rows: [torch.arange(18), torch.arange(18) + 1],
            r"expected labels \[18\], or soft ones .*, got \(2, 18\)",
        ),
    ],
)
def test_odd_soft_labels_are_damaged_exports(build, tmp_path, edit, message):
    distilled = build(runs=2, soft=(2, 18, 9))
    pt.write(distilled, tmp_path, "card")
    labels = edit(distilled.labels.clone())
    change(tmp_path, {"data": [[images.clone(), rows] for images, rows in zip(distilled.images, labels, strict=True)]})
    with pytest.raises(ValueError, match=message) as caught:
        pt.read(tmp_path)
    assert str(caught.value).startswith("expected an export of distilled images in")
    assert "\n" not in str(caught.value)


def test_shared_soft_labels_are_the_same_in_every_run(build, tmp_path):
    distilled = build(runs=2, soft=(18, 9))
    pt.write(distilled, tmp_path, "card")
    own = [distilled.labels.clone(), distilled.labels + 1]
    change(tmp_path, {"data": [[images.clone(), rows] for images, rows in zip(distilled.images, own, strict=True)]})
    with pytest.raises(ValueError, match="expected the same labels in every run, got several"):
        pt.read(tmp_path)


def change(folder, content):
    torch.save(content, folder / "res_fastdistill_birds_2ipc.pt")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda images, labels: {"data": []}, "got several or none"),
        (lambda images, labels: {"images": images}, "data"),
        (lambda images, labels: [[images, labels]], "is no dict"),
        (lambda images, labels: {"data": [[images]]}, "damaged"),
        (lambda images, labels: {"data": [[images, labels], [images[:4], labels]]}, "images of one shape"),
        (lambda images, labels: {"data": [[images, labels], [images.clone(), labels + 1]]}, "the same labels"),
        (lambda images, labels: {"data": [[images, labels]] * 1000}, "got shared ones"),
        (lambda images, labels: {"data": [[images[:, :, 1:].clone(), labels]]}, r"holds torch.float32 images \(1, 18"),
        (lambda images, labels: {"data": [[images.double(), labels]]}, "holds torch.float64 images"),
        (lambda images, labels: {"data": [[images, labels.int()]]}, "expected int64 labels"),
        (lambda images, labels: {"data": [[images, labels + 9]]}, "expected int64 labels in 0 to 8"),
        (lambda images, labels: {"data": [[1, 2]]}, "dense tensor"),
    ],
)
def test_odd_files_are_damaged_exports(build, tmp_path, edit, message):
    distilled = build()
    pt.write(distilled, tmp_path, "card")
    change(tmp_path, edit(distilled.images[0].clone(), distilled.labels))
    with pytest.raises(ValueError, match=message) as caught:
        pt.read(tmp_path)
    assert str(caught.value).startswith("expected an export of distilled images in")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_damaged_export(build, tmp_path):
    pt.write(build(), tmp_path, "card")
    (tmp_path / "res_fastdistill_birds_2ipc.pt").rename(tmp_path / "other")
    with pytest.raises(ValueError, match=r"it has 0 files res_\*\.pt"):
        pt.read(tmp_path)


def test_pairs_of_other_programs_may_have_more(build):
    images, labels = stacked_pairs({"data": [[torch.ones(2, 1, 1, 1), torch.zeros(2), "feature"]], "config": {}})
    assert images.shape == (1, 2, 1, 1, 1)
    assert torch.equal(labels, torch.zeros(2))
