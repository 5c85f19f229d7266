from dataclasses import replace

import pytest
import yaml

from fastdistill.comparison_config import (
    COMPARISONS,
    ComparisonConfig,
    PretrainingConfig,
    TestConfig,
    comparisons,
    judged_alike,
    with_defaults,
)
from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.method_configs import UnrolledConfig


def config(**changes):
    arms = {"a": RunConfig(name="a")}
    return ComparisonConfig(**{"name": "mine", "output": "out", "arms": arms, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"arms": {}}, "expected at least one arm, got none"),
        ({"images": "first"}, "expected images among last, best, got 'first'"),
        ({"images": "best"}, "expected validation_every for the arm a, whose best images are asked for, got 0"),
        (
            {"tests": {"p": TestConfig(student={"initialization": "pretrained", "pretrained": "out/mine/pretrained"})}},
            "expected pretraining.networks for p, whose weights are pretrained, got none",
        ),
        ({"tests": {"t": TestConfig(student={"norm": "odd"})}}, "expected norm among"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, expected):
    with pytest.raises(ValueError, match=expected):
        config(**changes)


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        (TestConfig, {"students": 0}, "expected students of at least 1"),
        (TestConfig, {"epochs": -1}, "expected epochs of at least 0"),
        (TestConfig, {"protocol": "ours"}, "expected protocol among dc, dsa, default, own"),
        (PretrainingConfig, {"networks": -1}, "expected networks of at least 0"),
        (PretrainingConfig, {"epochs": 0}, "expected epochs of at least 1"),
    ],
)
def test_wrong_settings_are_refused(kind, changes, expected):
    with pytest.raises(ValueError, match=expected):
        kind(**changes)


def test_best_images_need_a_selection_only():
    selecting = RunConfig(evaluation=EvaluationConfig(validation_every=5))
    assert config(images="best", arms={"a": selecting}).images == "best"


def test_a_test_is_by_fresh_students_unless_told_otherwise():
    own = StudentConfig(width=8, initialization="fixed")
    assert TestConfig().of(own) == StudentConfig(width=8)
    assert TestConfig(student={"initialization": "fixed", "depth": 2}).of(own) == StudentConfig(
        width=8, depth=2, initialization="fixed"
    )


def test_options_are_laid_over_others():
    base = {"ipc": 1, "data": {"source": "mnist", "root": "here"}, "method": {"kind": "implicit", "terms": 3}}
    assert with_defaults(base, {"data": {"root": "there"}, "ipc": 2}) == {
        **base,
        "ipc": 2,
        "data": {"source": "mnist", "root": "there"},
    }
    assert with_defaults(base, {"method": {"terms": 5}})["method"] == {"kind": "implicit", "terms": 5}
    assert with_defaults(base, {"method": {"kind": "implicit", "alpha": 1}})["method"]["terms"] == 3
    assert with_defaults(base, {"method": {"kind": "unrolled", "epochs": 9}})["method"] == {
        "kind": "unrolled",
        "epochs": 9,
    }
    assert with_defaults({"method": {"real_batch": 4}}, {"method": {"steps": 2}})["method"] == {
        "real_batch": 4,
        "steps": 2,
    }


def test_random_real_images_stand_beside_arms_that_are_judged_alike():
    arms = {
        "a": RunConfig(name="a"),
        "b": RunConfig(name="b", student=StudentConfig(initialization="fixed")),  # judged by fresh ones all the same
        "c": RunConfig(name="c", student=StudentConfig(weights="orthogonal")),
        "d": RunConfig(name="d", ipc=2),
    }
    assert judged_alike(arms["a"], arms["b"])
    fewer = replace(arms["a"], evaluation=EvaluationConfig(students=3))
    for other in (arms["c"], arms["d"], replace(arms["a"], seed=1), fewer):
        assert not judged_alike(arms["a"], other)
    tests = {"own": TestConfig(), "named": TestConfig(student={"weights": "default"})}
    found = config(arms=arms, tests=tests)
    assert [found.alike(1, name) for name in tests] == [False, True]
    assert found.alike(2, "own")


def test_arms_with_steps_of_their_own_have_random_real_images_of_their_own():
    own = EvaluationConfig(protocol="own")
    arms = [RunConfig(name=name, method=UnrolledConfig(), ipc=10, evaluation=own) for name in "ab"]
    assert not judged_alike(*arms)
    assert judged_alike(arms[0], arms[0])


def test_epochs_of_images_with_steps_of_their_own_are_refused():
    own = RunConfig(method=UnrolledConfig(), ipc=10, evaluation=EvaluationConfig(protocol="own"))
    with pytest.raises(ValueError, match="expected no epochs for the arm a, which is tested by its own steps, got 3"):
        config(arms={"a": own}, tests={"t": TestConfig(epochs=3)})
    assert config(arms={"a": own}, tests={"t": TestConfig(epochs=3, protocol="dc")}).tests["t"].epochs == 3


def test_comparisons_come_along():
    assert {"mnist", "cifar10", "mnist-cpu", "weights-digits"} <= set(comparisons())
    for name in comparisons():
        assert yaml.safe_load((COMPARISONS / f"{name}.yaml").read_text())["arms"]
