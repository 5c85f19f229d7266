import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import yaml

from fastdistill.baseline_config import BASELINES, BaselineConfig
from fastdistill.config import DataConfig, StudentConfig


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "a/b"}, "expected a name that is one folder name, got 'a/b'"),
        ({"ipc": 0}, "expected ipc of at least 1, got 0"),
        ({"baselines": ("herdin",)}, "expected baselines among random_real.*got 'herdin': did you mean 'herding'"),
        ({"baselines": ("herding", "herding")}, "expected every baseline once, got herding, herding"),
        ({"baselines": ("nearest_neighbour",)}, "expected a run folder as against for nearest_neighbour, got none"),
        ({"baselines": ("herding",), "against": "run"}, "expected nearest_neighbour among the baselines"),
        ({"protocol": "own"}, "expected protocol among dc, dsa, default, got 'own'"),
        ({"epochs": -1}, "expected epochs of at least 0"),
        ({"students": 0}, "expected students of at least 1"),
        ({"whole_epochs": 0}, "expected whole_epochs of at least 1"),
        ({"whole_students": 0}, "expected whole_students of at least 1"),
        ({"candidates": 0}, "expected candidates of at least 1"),
        ({"candidate_students": 0}, "expected candidate_students of at least 1"),
        ({"candidate_epochs": 0}, "expected candidate_epochs of at least 1"),
        ({"networks": 0}, "expected networks of at least 1"),
        ({"network_epochs": 0}, "expected network_epochs of at least 1"),
        ({"network_width": -1}, "expected network_width of at least 0"),
        (
            {"network_width": 8, "student": StudentConfig(architecture="mlp")},
            "expected a network_width for a convnet only, got 8 for mlp: leave it out",
        ),
        ({"seed": 2**63}, "expected seed of at most"),
        ({"threads": 5000}, "expected threads of at most 4096"),
        ({"device": "gpu"}, "expected device among auto, cpu, cuda"),
        ({"student": StudentConfig(initialization="fixed")}, "expected fresh students to judge baselines"),
    ],
)
def test_wrong_values_are_named(changes, expected):
    with pytest.raises(ValueError, match=expected):
        BaselineConfig(**changes)


def test_neighbours_are_judged_where_there_is_something_to_be_near_to():
    assert set(BASELINES) - set(BaselineConfig().chosen) == {"nearest_neighbour"}
    assert BaselineConfig(against="run").chosen == BASELINES
    assert BaselineConfig(baselines=("k_means", "herding")).chosen == ("k_means", "herding")


@pytest.mark.parametrize(
    ("config", "folder"),
    [
        (BaselineConfig(), "baselines/digits-convnet-3-128-1"),
        (BaselineConfig(data=DataConfig(source="cifar10", zca=True), ipc=10), "baselines/cifar10-zca-convnet-3-128-10"),
        (BaselineConfig(student=StudentConfig(architecture="mlp"), output="o"), "o/digits-mlp-1"),
        (BaselineConfig(name="mine"), "baselines/mine"),
    ],
)
def test_the_folder_says_what_is_inside(config, folder):
    assert config.folder == Path(folder)
    assert config.as_dict()["name"] == config.folder.name
    assert config.as_dict()["baselines"] == list(config.chosen)
    assert yaml.safe_load(yaml.safe_dump(config.as_dict())) == config.as_dict()


def test_networks_are_students_of_a_width_of_their_own():
    student = StudentConfig(width=64, depth=2, norm="batch")
    assert BaselineConfig(student=student).network == student
    assert BaselineConfig(student=student, network_width=16).network == StudentConfig(width=16, depth=2, norm="batch")


def test_it_is_frozen_and_needs_no_torch():
    with pytest.raises(FrozenInstanceError):
        BaselineConfig().ipc = 3
    code = "import sys, fastdistill.baseline_config; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
