from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from fastdistill.config import DataConfig, RunConfig, StudentConfig
from fastdistill.derivatives.layout import Layout
from fastdistill.loop.examination import examination, images_file, protocol_for
from fastdistill.loop.run import run
from fastdistill.method_configs import matching_recipe
from fastdistill.progress import Silent
from fastdistill.students.ensemble import student_module
from fastdistill.synthetic.distilled import load_file
from fastdistill.synthetic.schedule import Schedule

SCHEDULE = Schedule(rates=torch.full((2,), 0.01), images=torch.tensor([[0], [1]]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    images = torch.randint(0, 256, (30, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    for name, pixels in {"own": images, "other": images[:, :7], "floats": images / 255}.items():
        np.savez(output / f"{name}.npz", images=pixels, labels=np.arange(30) % 3)
    np.savez(output / "two.npz", images=images, labels=np.arange(30) % 2)
    for kind, names in {"named": ("a", "b", "c"), "renamed": ("a", "b", "d")}.items():
        for label, name in enumerate(names):
            (output / kind / name).mkdir(parents=True)
            for index, picture in enumerate(images[label::3]):
                Image.fromarray(picture).save(output / kind / name / f"{index}.png")
    config = RunConfig(
        name="run",
        output=str(output),
        data=DataConfig(source=f"npz:{output / 'own.npz'}", validation_fraction=0.0),
        student=StudentConfig(width=4, depth=2),
        method=matching_recipe("dsa", 1, steps=1, real_batch=4),
        device="cpu",
    )
    return run(config, judge=False).folder


@pytest.mark.parametrize(
    ("schedule", "name", "expected"),
    [
        (None, None, "dc"),
        (None, "dsa", "dsa"),
        (SCHEDULE, None, "own"),
        (SCHEDULE, "dsa", "dsa"),
        (SCHEDULE, "own", "own"),
    ],
)
def test_images_with_steps_of_their_own_are_replayed_unless_told_otherwise(schedule, name, expected):
    found = protocol_for(schedule, name, "dc", dataset="own", student=StudentConfig(), align_corners=False)
    assert found.name == expected
    assert found.steps == (2 if expected == "own" else 0)
    if expected == "own":
        assert torch.equal(found.replay.order, SCHEDULE.images)


def test_the_files_of_a_run_are_named(folder):
    assert images_file(folder, "last") == folder / "distilled.safetensors"
    assert images_file(folder / "distilled.safetensors", "last") == folder / "distilled.safetensors"


def test_fixed_and_pretrained_students_judge_where_they_are_asked_for(folder, tmp_path):
    distilled, indices = load_file(folder), torch.arange(5)
    plain = yaml.safe_load((folder / "config.yaml").read_text())
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    (fixed / "config.yaml").write_text(yaml.safe_dump({**plain, "students": 4}))
    for seed in (0, 3):  # the run's, whatever the seed
        test = examination(fixed, distilled, student={"initialization": "fixed"}, students=5, seed=seed, device="cpu")
        weights, _ = test.born(indices)
        assert len({tuple(row.tolist()) for row in weights}) == 4
        assert torch.equal(weights[0], weights[4])
        assert test.student.initialization == "fixed"
    with_others = examination(
        fixed, distilled, student={"initialization": "fixed", "width": 6}, students=1, device="cpu"
    )
    assert with_others.born(indices)[0].shape[1] > weights.shape[1]
    layout = Layout.of(student_module(test.student, (1, 8, 8), 3))
    for number in range(2):
        tensors = layout.views(torch.full((layout.size,), float(number)))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / f"{number}.safetensors")
    asked = {"initialization": "pretrained", "pretrained": str(tmp_path)}
    weights, _ = examination(fixed, distilled, student=asked, students=9, device="cpu").born(torch.arange(9))
    assert set(weights.amax(1).tolist()) == {0.0, 1.0}
    assert examination(fixed, distilled, student={}, students=1, device="cpu").born is None


def test_some_test_images_are_spread_over_the_set(folder):
    test = examination(folder, load_file(folder), student={}, students=1, device="cpu")
    some = test.with_test_images(4)
    places = [0, len(test.test) // 4, len(test.test) // 2, 3 * len(test.test) // 4]
    assert torch.equal(some.test.images, test.test.images[places])
    with pytest.raises(ValueError, match=r"expected 1 to \d+ test images, got 99: lower test_images"):
        test.with_test_images(99)


def test_the_same_students_judge_every_time(folder):
    distilled = load_file(folder)
    test = examination(folder, distilled, student={"width": 6}, students=2, seed=3, device="cpu")
    assert (test.student.width, test.student.depth, test.rules.name) == (6, 2, "default")
    quick = replace(test, rules=test.rules.with_epochs(3))
    assert quick.judge(distilled).per_student == quick.judge(distilled).per_student


def test_random_real_images_are_judged_in_the_same_way(folder):
    distilled = load_file(folder)
    test = examination(folder, distilled, student={}, students=3, seed=3, device="cpu")
    quick = replace(test, rules=test.rules.with_epochs(2))
    found = quick.random_real(distilled)
    assert (len(found.per_student), found.images, found.epochs) == (3, len(distilled), 2)
    assert len(test.train) + len(test.test) <= 1797


def test_soft_labels_are_trained_on_but_not_by_random_real_images(folder):
    distilled = load_file(folder)
    test = examination(folder, distilled, student={}, students=3, seed=3, device="cpu")
    quick = replace(test, rules=test.rules.with_epochs(30))
    rows = torch.eye(3)[None]
    told, wrong = replace(distilled, labels=rows), replace(distilled, labels=rows.roll(1, dims=2))
    assert quick.judge(told).per_student == quick.judge(distilled).per_student
    assert quick.judge(wrong).per_student != quick.judge(distilled).per_student
    assert quick.random_real(wrong).per_student == quick.random_real(distilled).per_student


def test_a_learned_rate_is_for_distilled_images_alone(folder):
    plain = load_file(folder)
    told = replace(plain, learning_rate=torch.tensor([0.2]))
    found = {}
    for distilled in (plain, told):
        test = examination(folder, distilled, student={}, students=3, seed=3, device="cpu")
        assert test.rules.rates is distilled.learning_rate
        quick = replace(test, rules=test.rules.with_epochs(20))
        found[distilled] = quick.judge(distilled).per_student, quick.random_real(distilled).per_student
    assert found[plain][0] != found[told][0]
    assert found[plain][1] == found[told][1]


def test_random_real_images_take_the_steps_of_every_run_in_turn(folder):
    one = load_file(folder)
    rates = torch.tensor([[0.01, 0.01], [10.0, 10.0]])
    schedule = Schedule(rates=rates, images=torch.tensor([[0, 1], [1, 2]]))
    two = replace(one, images=one.images.repeat(2, 1, 1, 1, 1), schedule=schedule)
    test = examination(folder, two, student={}, students=3, seed=3, device="cpu")
    together = test.random_real(two).per_student
    assert len(together) == 6
    alone = replace(two.run(0), schedule=schedule.run(0))
    test = examination(folder, alone, student={}, students=3, seed=3, device="cpu")
    assert test.random_real(alone).per_student == together[:3]


def test_why_there_are_no_random_real_images_is_said(folder):
    distilled, said = load_file(folder), []
    progress = type("Remembers", (Silent,), {"say": lambda self, text: said.append(text)})()
    test = examination(folder, distilled, student={}, students=1, device="cpu")
    unequal = replace(distilled, labels=torch.zeros_like(distilled.labels))
    assert test.random_real(unequal, progress=progress) is None
    many = replace(distilled, images=distilled.images.repeat(1, 9, 1, 1, 1), labels=distilled.labels.repeat(9))
    assert test.random_real(many, progress=progress) is None
    assert said == [
        "no random real images are judged beside: the distilled ones are 0 to 3 of a class, not equally many",
        "no random real images are judged beside: class '0' has 8 training images, fewer than 9",
    ]


@pytest.mark.parametrize("name", ["other", "floats"])
def test_other_test_images_are_refused(folder, name):
    with pytest.raises(ValueError, match=r"expected test images like the distilled ones, .*distilled from"):
        examination(
            folder,
            load_file(folder),
            student={},
            students=1,
            device="cpu",
            source=f"npz:{folder.parent / name}.npz",
        )


def test_test_images_of_other_classes_are_refused(folder):
    def examined(kind, source, **changes):
        distilled = replace(load_file(folder), **changes)
        place = f"{kind}:{folder.parent / source}"
        return examination(folder, distilled, student={}, students=1, device="cpu", source=place)

    with pytest.raises(ValueError, match=r"the 3 classes of the distilled ones, got 2 classes in npz:.*two\.npz: n"):
        examined("npz", "two.npz")
    names = ("a", "b", "c")
    with pytest.raises(ValueError, match=r"got class 2 named 'd' in folder:.*renamed in place of 'c': name"):
        examined("folder", "renamed", class_names=names)
    assert examined("folder", "named", class_names=names).source == f"folder:{folder.parent / 'named'}"
    assert examined("npz", "own.npz", class_names=names).test.class_names == names  # numbers are no names
    assert examined("folder", "named").test.class_names == ("0", "1", "2")


@pytest.mark.parametrize("content", ["", "student: 3", "{", "student: {colour: red}", "\x00"])
def test_another_configuration_is_refused(folder, tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"expected the configuration of a run in .*config\.yaml") as caught:
        examination(tmp_path, load_file(folder), student={}, students=1, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_bad_student_is_named(folder):
    with pytest.raises(ValueError, match="expected architecture among"):
        examination(folder, load_file(folder), student={"architecture": "x"}, students=1, device="cpu")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["student"]["width"] == 4
