import pytest
import torch

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.evaluation.arms import Judge
from fastdistill.progress import Silent


def judge(epochs=4, rate=None, **evaluation):
    data = load_source("digits")
    config = RunConfig(
        ipc=2,
        student=StudentConfig(width=4, depth=2),
        evaluation=EvaluationConfig(students=3, protocol="dc", **evaluation),
    )
    held_out = torch.arange(100)
    validation = data.train.subset(held_out)
    judge = Judge(
        config,
        data.train,
        validation,
        data.test,
        torch.float32,
        learning_rate=lambda learned: None if rate is None else learned["images"].new_full((1,), rate),
    )
    rules = judge._protocol
    judge._protocol = lambda learned: rules(learned).with_epochs(epochs)
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


def test_students_train_on_learned_labels_but_for_real_images():
    judging, data = judge(epochs=40, validation_students=2, validation_epochs=40)
    learned = class_means(data, runs=2)
    true = torch.eye(10)[:, None].expand(2, 10, 2, 10)
    wrong = true.roll(1, dims=3)
    hard, same, other = (
        list(judging.arms(told, None, Silent()))
        for told in (learned, learned | {"labels": true}, learned | {"labels": wrong})
    )
    assert same[0]["per_student"] == pytest.approx(hard[0]["per_student"], abs=0.01)
    assert other[0]["mean"] < same[0]["mean"] - 0.1
    assert [arm["arm"] for arm in other] == ["distilled (last)", "random real"]
    assert other[1]["per_student"] == hard[1]["per_student"]
    mixed = next(judging.arms(learned | {"labels": torch.stack([true[0], wrong[0]])}, None, Silent()))
    assert mixed["per_run"][0] == same[0]["per_run"][0]
    assert mixed["per_run"][1] == other[0]["per_run"][1]
    found = judging.validate(learned | {"labels": wrong}).mean
    assert found < judging.validate(learned).mean


def test_a_learned_rate_is_for_distilled_images_alone():
    told, data = judge(epochs=10, rate=0.1, whole_epochs=1, whole_students=2, validation_students=2)
    plain, _ = judge(epochs=10, whole_epochs=1, whole_students=2, validation_students=2)
    learned = class_means(data)
    with_rate, without = (list(judging.arms(learned, None, Silent())) for judging in (told, plain))
    assert [arm["arm"] for arm in with_rate] == ["distilled (last)", "random real", "whole training set"]
    assert with_rate[0]["per_student"] != without[0]["per_student"]
    for arm in (1, 2):
        assert with_rate[arm]["per_student"] == without[arm]["per_student"]
    assert told.validate(learned).per_student != plain.validate(learned).per_student


def test_validation_uses_the_held_out_images():
    judging, data = judge(validation_students=2, validation_epochs=3)
    found = judging.validate(class_means(data))
    assert len(found.per_student) == 2
    assert found.epochs == 3
    assert all(abs(100 * share - round(100 * share)) < 1e-9 for share in found.per_student)  # out of 100 images
