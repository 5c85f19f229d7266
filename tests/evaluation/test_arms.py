import torch

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.evaluation.arms import Judge
from fastdistill.progress import Silent


def judge(**evaluation):
    data = load_source("digits")
    config = RunConfig(
        ipc=2,
        student=StudentConfig(width=4, depth=2),
        evaluation=EvaluationConfig(students=3, protocol="dc", **evaluation),
    )
    held_out = torch.arange(100)
    judge = Judge(config, data.train, data.train.subset(held_out), data.test, torch.float32)
    rules = judge._protocol
    judge._protocol = lambda learned: rules(learned).with_epochs(4)
    return judge, data


def class_means(data, runs=1):
    means = []
    for label in range(10):
        means.append(data.train.batch(data.train.class_indices(label)).mean(0))
    return {"images": torch.stack(means)[None, :, None].expand(runs, 10, 2, 1, 8, 8).contiguous()}


def flipped(learned):
    return {"images": learned["images"].flip(1)}


def test_arms_name_what_was_trained_on():
    judging, data = judge(whole_epochs=1, whole_students=2)
    learned = class_means(data)
    arms = list(judging.arms(learned, flipped(learned), Silent()))
    assert judging.conditions["protocol"] == "dc"
    found = [(arm["arm"], arm["images"], arm["students"], arm["epochs"]) for arm in arms]
    assert found == [
        ("distilled (last)", 20, 3, 4),
        ("distilled (best on validation)", 20, 3, 4),
        ("random real", 20, 3, 4),
        ("whole training set", len(data.train), 2, 1),
    ]
    assert arms[1]["per_student"] != arms[0]["per_student"]


def test_arms_that_were_measured_before_are_taken_over():
    judging, data = judge(whole_epochs=1, whole_students=2)
    learned = class_means(data)
    straight = list(judging.arms(learned, flipped(learned), Silent()))
    for count in range(5):
        kept = [{**arm, "seconds": -1.0} for arm in straight[:count]]
        again = list(judging.arms(learned, flipped(learned), Silent(), kept))
        assert [arm["seconds"] == -1.0 for arm in again] == [index < count for index in range(4)]
        assert [arm["per_student"] for arm in again] == [arm["per_student"] for arm in straight]


def test_the_last_images_are_not_tested_twice():
    judging, data = judge(random_real=False)
    learned = class_means(data)
    arms = list(judging.arms(learned, learned, Silent()))
    assert [arm["arm"] for arm in arms] == ["distilled (last)", "distilled (best on validation)"]
    assert arms[0]["per_student"] == arms[1]["per_student"]


def test_every_run_has_its_own_students():
    judging, data = judge(random_real=False)
    learned = class_means(data, runs=2)
    arms = list(judging.arms(learned, None, Silent()))
    assert len(arms[0]["per_student"]) == 6


def test_validation_uses_the_held_out_images():
    judging, data = judge(validation_students=2, validation_epochs=3)
    found = judging.validate(class_means(data))
    assert len(found.per_student) == 2
    assert found.epochs == 3
    assert all(abs(100 * share - round(100 * share)) < 1e-9 for share in found.per_student)  # out of 100 images
