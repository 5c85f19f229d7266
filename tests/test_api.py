from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import fastdistill
from fastdistill.config import StudentConfig
from fastdistill.synthetic.schedule import Schedule

SMALL = StudentConfig(width=4, depth=2)
FAST = {"student": SMALL, "steps": 3, "real_batch": 8, "device": "cpu"}


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.images * 255 / 16).round().astype(np.uint8), data.target


def test_the_whole_way_from_arrays(digits):
    images, labels = digits
    distilled = fastdistill.distill(images[:1500], labels[:1500], method="dc", ipc=1, students=2, **FAST)
    assert isinstance(distilled, fastdistill.Distilled)
    assert distilled.images.shape == (1, 10, 1, 8, 8)
    found = fastdistill.evaluate(
        distilled, images[1500:], labels[1500:], students=3, epochs=3, student=SMALL, device="cpu"
    )
    assert len(found.per_student) == 3
    assert 0 <= found.mean <= 1
    assert found.std >= 0
    again = fastdistill.distill(images[:1500], labels[:1500], ipc=1, students=2, **FAST)
    assert torch.equal(distilled.images, again.images)


@pytest.mark.parametrize("kind", ["uint8", "float", "tensor", "channels last", "channels first", "list", "data set"])
def test_images_come_in_any_form(digits, kind):
    images, labels = digits[0][:300], digits[1][:300]
    color = np.stack([images, 255 - images, images // 2], axis=-1)
    given = {
        "uint8": (images, labels),
        "float": (images / 255.0, labels.tolist()),
        "tensor": (torch.from_numpy(images)[:, None], torch.from_numpy(labels)),
        "channels last": (color, labels),
        "channels first": (color.transpose(0, 3, 1, 2), labels),
        "list": (images.tolist(), labels),
        "data set": ([(image, int(label)) for image, label in zip(images, labels, strict=True)],),
    }[kind]
    distilled = fastdistill.distill(*given, method="dsa", ipc=2, runs=2, **{**FAST, "outer_loop": 2, "inner_loop": 1})
    channels = 3 if "channels" in kind else 1
    assert distilled.images.shape == (2, 20, channels, 8, 8)
    assert distilled.images.isfinite().all()


@pytest.mark.parametrize("shape", [(3, 9, 14), (2, 16, 16), (1, 5, 5)])
def test_images_have_any_size_and_channel_count(shape):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, *shape, generator=generator)
    student = StudentConfig(width=4, depth=1)
    distilled = fastdistill.distill(images, torch.arange(40) % 4, **{**FAST, "student": student})
    found = fastdistill.evaluate(
        distilled, images, torch.arange(40) % 4, students=2, epochs=2, student=student, device="cpu"
    )
    assert distilled.images.shape == (1, 4, *shape)
    assert len(found.per_student) == 2


def test_plain_images_are_evaluated_too(digits):
    images, labels = digits
    found = fastdistill.evaluate(
        (images[:200], labels[:200]), images[200:], labels[200:], students=2, epochs=40, student=SMALL, device="cpu"
    )
    assert found.mean > 0.3
    assert found.images == 200


def test_images_with_steps_of_their_own_are_replayed_unless_told_otherwise(digits, tmp_path):
    images, labels = digits
    plain = fastdistill.distill(images[:300], labels[:300], runs=2, **FAST)
    schedule = Schedule(rates=torch.full((2, 3), 0.01), images=torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8]]))
    scheduled = replace(plain, schedule=schedule)
    options = {"test_images": images[300:500], "test_labels": labels[300:500], "students": 2, "student": SMALL}
    own = fastdistill.evaluate(scheduled, **options)
    assert (own.protocol, own.steps, len(own.per_student)) == ("own", 3, 4)
    scheduled.save(tmp_path / "distilled.safetensors")
    assert fastdistill.evaluate(tmp_path, **options).per_student == own.per_student
    other = fastdistill.evaluate(scheduled, protocol="default", epochs=2, **options)
    assert (other.protocol, other.steps, other.epochs) == ("default", 0, 2)
    assert other.per_student == fastdistill.evaluate(plain, epochs=2, **options).per_student
    with pytest.raises(ValueError, match="expected no epochs for the protocol own"):
        fastdistill.evaluate(scheduled, epochs=2, **options)
    with pytest.raises(ValueError, match="expected images with steps and rates of their own"):
        fastdistill.evaluate(plain, protocol="own", **options)


def test_soft_labels_and_the_rate_of_every_run_are_used(digits):
    images, labels = digits
    plain = fastdistill.distill(images[:1500], labels[:1500], runs=2, **FAST)
    options = {"test_images": images[1500:], "test_labels": labels[1500:], "students": 2, "epochs": 30}
    options |= {"student": SMALL, "device": "cpu"}

    def judged(**changes):
        return fastdistill.evaluate(replace(plain, **changes), **options).per_student

    true = torch.eye(10).expand(2, 10, 10)
    assert judged(labels=true.contiguous()) == judged(labels=plain.labels) == judged()
    found = judged(labels=torch.stack([true[0], true[0].roll(1, 0)]))
    assert found[:2] == judged()[:2] and found[2:] != judged()[2:]
    found = judged(learning_rate=torch.tensor([0.01, 0.1]))
    assert found[:2] == pytest.approx(judged()[:2], abs=0.01) and found[2:] != judged()[2:]


def test_the_name_of_the_data_set_decides_what_depends_on_it(digits):
    images, labels = digits
    named = fastdistill.distill(images, labels, method="dsa", dataset="digits", **FAST)
    other = fastdistill.distill(images, labels, method="dsa", start="real", **FAST)
    assert named.augmentation == "color_crop_cutout_scale_rotate"
    assert other.augmentation == "color_crop_cutout_flip_scale_rotate"
    assert named.dataset == "digits"


def test_the_published_steps_are_the_default():
    from fastdistill.method_configs import matching_recipe

    assert matching_recipe("dc", 1).steps == 1000
    assert matching_recipe("dsa", 10).steps == 10000


def test_completion_shows_the_public_names():
    assert set(fastdistill.__all__) <= set(dir(fastdistill))


def test_what_cannot_be_used_is_named(digits):
    images, labels = digits
    with pytest.raises(ValueError, match="expected method among dc, dsa"):
        fastdistill.distill(images, labels, method="mtt")
    with pytest.raises(ValueError, match="resize them"):
        fastdistill.evaluate((images[:50], labels[:50]), images[:, :7], labels, student=SMALL)
    with pytest.raises(ValueError, match=r"in the unit of the training images \(bytes\), got floats"):
        fastdistill.evaluate((images[:50], labels[:50]), images / 255, labels, student=SMALL)
    with pytest.raises(ValueError, match="expected at least one student"):
        fastdistill.evaluate((images[:50], labels[:50]), images, labels, students=0, student=SMALL)
    with pytest.raises(ValueError, match="expected at least one epoch"):
        fastdistill.evaluate((images[:50], labels[:50]), images, labels, epochs=-1, student=SMALL)
    with pytest.raises(TypeError, match="stepz"):
        fastdistill.distill(images, labels, stepz=3)
    with pytest.raises(AttributeError, match="no attribute 'destill'"):
        fastdistill.destill  # noqa: B018
