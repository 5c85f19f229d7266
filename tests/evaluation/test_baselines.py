"""Baselines on the digits: what each is made of, how it is judged, and what is refused."""

from dataclasses import replace

import pytest
import torch

from fastdistill.baseline_config import BASELINES, LABELS, BaselineConfig
from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.normalization import zca_normalization
from fastdistill.data.sources import load_source
from fastdistill.evaluation import coresets
from fastdistill.evaluation.arms import Judge
from fastdistill.evaluation.baselines import judge_baselines
from fastdistill.progress import Silent
from fastdistill.synthetic.distilled import Distilled

STUDENT = StudentConfig(width=4, depth=2)
REAL = ("random_real", "optimised_random", "herding", "k_center", "forgetting", "nearest_neighbour")
SETS = {"random_real": 3, "optimised_random": 2, "nearest_neighbour": 2}  # the others are one


def tiny(**changes):
    return BaselineConfig(
        **{
            "ipc": 2,
            "against": "some run",
            "epochs": 20,
            "students": 3,
            "whole_epochs": 1,
            "whole_students": 2,
            "candidates": 10,
            "candidate_students": 1,
            "candidate_epochs": 2,
            "networks": 2,
            "network_epochs": 2,
            "student": STUDENT,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def stores():
    data = load_source("digits")
    train = data.train.subset(torch.arange(300))
    return train, data.train.subset(torch.arange(300, 400)), data.test.subset(torch.arange(80))


def distilled_of(train, ipc=2, runs=2, **changes):
    """Images that are almost real ones, and which these are, ``[R, C, M]``."""
    chosen = torch.stack(
        [
            torch.stack([train.class_indices(label)[run * ipc : (run + 1) * ipc] for label in range(10)])
            for run in range(runs)
        ]
    )
    images = train.batch(chosen.flatten(1))
    values = {
        "images": images + 0.01,
        "labels": torch.arange(10).repeat_interleave(ipc),
        "class_names": train.class_names,
        "normalization": train.normalization,
        **changes,
    }
    return Distilled(**values), chosen


@pytest.fixture(scope="module")
def judged(stores):
    against, _ = distilled_of(stores[0])
    return {one.name: one for one in judge_baselines(tiny(), *stores, against=against)}


def test_every_baseline_is_a_row_like_an_arm(stores, judged):
    assert tuple(judged) == BASELINES
    train, validation, test = stores
    config = RunConfig(
        ipc=2, student=STUDENT, evaluation=EvaluationConfig(students=3, whole_epochs=1, whole_students=2)
    )
    judge = Judge(config, train, validation, test, torch.float32)
    rules = judge._protocol
    judge._protocol = lambda learned: rules(learned).with_epochs(20)
    learned = {"images": torch.zeros(1, 10, 2, *train.shape)}
    _, random, whole = judge.arms(learned, None, Silent())
    for arm, ours in ((random, judged["random_real"].arm), (whole, judged["whole_set"].arm)):
        assert set(arm) == set(ours)
        assert arm["per_student"] == ours["per_student"]
    for name, one in judged.items():
        arm = one.arm
        assert arm["arm"] == LABELS[name]
        assert len(arm["per_student"]) == arm["students"]
        if name == "whole_set":
            assert one.images is None
            assert (arm["images"], arm["students"], arm["epochs"]) == (300, 2, 1)
            continue
        runs = 1 if name == "random_real" else SETS.get(name, 1)
        assert len(arm["per_run"]) == (3 if name == "random_real" else runs)
        assert (arm["images"], arm["epochs"]) == (20, 20)
        assert arm["students"] == (4 if runs == 2 else 3)  # of two sets, each has half of the three students
        assert one.images.shape == (SETS.get(name, 1), 10, 2, *train.shape)


def test_coresets_are_distinct_real_images_of_their_class(stores, judged):
    train = stores[0]
    real = train.batch(torch.arange(300)).flatten(1)
    for name in REAL:
        for run in judged[name].images:
            distance, found = torch.cdist(run.flatten(0, 1).flatten(1), real).min(1)
            assert float(distance.max()) < 1e-2
            assert train.labels[found].tolist() == torch.arange(10).repeat_interleave(2).tolist()
            assert len(set(found.tolist())) == 20


def test_a_baseline_is_the_same_whatever_else_is_asked_for(stores, judged):
    for names in (("forgetting",), ("k_means", "k_center")):
        for one in judge_baselines(tiny(), *stores, names=names):
            assert torch.equal(one.images, judged[one.name].images)
            assert one.arm["per_student"] == judged[one.name].arm["per_student"]


@pytest.mark.parametrize("zca", [False, True])
def test_summaries_are_of_pixels(stores, zca):
    train, validation, test = stores
    statistics = zca_normalization(train.images) if zca else train.normalization
    train, validation, test = (replace(store, normalization=statistics) for store in (train, validation, test))
    names = ("class_average", "k_means")
    average, means = judge_baselines(tiny(ipc=1), train, validation, test, names=names)
    pixels = torch.stack([train.images[train.class_indices(label)].float().mean(0) / 255 for label in range(10)])
    torch.testing.assert_close(statistics.invert(average.images[0, :, 0]), pixels, rtol=0, atol=2e-3)
    torch.testing.assert_close(average.images, means.images, rtol=0, atol=2e-3)


def test_neighbours_are_those_of_every_run(stores, judged):
    against, chosen = distilled_of(stores[0])
    torch.testing.assert_close(judged["nearest_neighbour"].images, stores[0].batch(chosen), rtol=0, atol=0)
    # soft labels say no more than that the images stand in the order of the classes
    soft = replace(against, labels=torch.full((20, 10), 0.1))
    (found,) = judge_baselines(tiny(), *stores, against=soft, names=("nearest_neighbour",))
    assert torch.equal(found.images, judged["nearest_neighbour"].images)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    other = replace(against, images=against.images[:, order], labels=against.labels[order])
    (found,) = judge_baselines(tiny(), *stores, against=other, names=("nearest_neighbour",))
    for run in range(2):
        for label in range(10):
            kept, ours = (one.images[run, label].flatten(1) for one in (judged["nearest_neighbour"], found))
            assert {tuple(row) for row in kept.tolist()} == {tuple(row) for row in ours.tolist()}


def test_optimised_random_keeps_the_sets_that_validate_best(stores, monkeypatch):
    train, validation, test = stores
    heard = {}

    def best_sets(scores):
        heard["scores"] = scores
        return torch.tensor([7, 1])

    monkeypatch.setattr(coresets, "best_sets", best_sets)
    (found,) = judge_baselines(tiny(), *stores, names=("optimised_random",))
    assert heard["scores"].shape == (10,)
    assert all(abs(100 * one - round(100 * one)) < 1e-9 for one in heard["scores"].tolist())  # of 100 images
    nothing = validation.subset(torch.arange(0))
    (_,) = judge_baselines(tiny(), train, nothing, test, names=("optimised_random",))
    assert all(abs(300 * one - round(300 * one)) < 1e-9 for one in heard["scores"].tolist())  # of 300 images
    assert found.images.shape[0] == 2


def test_the_protocol_and_the_student_are_the_configured_ones(stores):
    config = tiny(protocol="dsa", student=StudentConfig(architecture="mlp"))
    (found,) = judge_baselines(config, *stores, names=("herding",))
    (other,) = judge_baselines(replace(config, protocol="dc"), *stores, names=("herding",))
    assert torch.equal(found.images, other.images)
    assert found.arm["per_student"] != other.arm["per_student"]


def test_networks_may_be_narrower_than_students(stores, judged):
    (found,) = judge_baselines(tiny(network_width=2), *stores, names=("herding",))
    (wide,) = judge_baselines(tiny(student=replace(STUDENT, width=2)), *stores, names=("herding",))
    assert torch.equal(found.images, wide.images)
    assert not torch.equal(found.images, judged["herding"].images)
    assert found.arm["per_student"] != wide.arm["per_student"]


def without_class(train, label):
    kept = (train.labels != label).nonzero().flatten()
    return train.subset(torch.cat([kept, train.class_indices(label)[:1]]))


def test_a_class_of_too_few_images_is_named(stores):
    train, validation, test = stores
    few = without_class(train, 4)
    with pytest.raises(ValueError, match="expected at least 2 training images in every class, got 1 in class '4'"):
        judge_baselines(tiny(), few, validation, test)
    (whole,) = judge_baselines(tiny(), few, validation, test, names=("whole_set",))
    assert whole.arm["images"] == len(few)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"images": torch.zeros(1, 20, 1, 9, 9)}, r"shape \(1, 8, 8\), got \(1, 9, 9\)"),
        ({"class_names": tuple("abcdefghij")}, "10 classes, got 10 with 'a'"),
        ({"class_names": tuple("1023456789")}, "10 classes, got 10 with 'another order'"),
        ({"unit": "floats"}, "pixels in bytes, as the training images are, got floats"),
        ({"labels": torch.arange(20) // 4}, "expected 2 distilled images of every class, got 0 to 4"),
    ],
)
def test_distilled_images_of_something_else_are_refused(stores, changes, expected):
    against, _ = distilled_of(stores[0], **changes)
    with pytest.raises(ValueError, match=expected):
        judge_baselines(tiny(), *stores, against=against)


def test_neighbours_need_distilled_images(stores):
    with pytest.raises(ValueError, match="expected distilled images for nearest_neighbour, got none"):
        judge_baselines(tiny(), *stores)
