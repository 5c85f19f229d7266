import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from fastdistill.config import DataConfig, StudentConfig
from fastdistill.experts_config import ExpertsConfig


def test_the_default_is_the_published_recipe():
    config = ExpertsConfig()
    assert (config.count, config.epochs, config.batch) == (100, 50, 256)
    assert (config.learning_rate, config.momentum, config.weight_decay) == (0.01, 0.0, 0.0)
    assert (config.storage, config.align_corners) == ("float32", True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "a/b"}, "expected a name that is one folder name, got 'a/b'"),
        ({"name": ".."}, "expected a name that is one folder name"),
        ({"count": 0}, "expected count of at least 1, got 0"),
        ({"epochs": 0}, "expected epochs of at least 1"),
        ({"batch": 0}, "expected batch of at least 1"),
        ({"learning_rate": 0.0}, "expected a positive, finite learning_rate"),
        ({"learning_rate": float("nan")}, "expected a positive, finite learning_rate"),
        ({"momentum": 1.0}, r"expected a momentum in \[0, 1\), got 1.0"),
        ({"weight_decay": -0.1}, "expected weight_decay of at least 0"),
        ({"augmentation": "colour_crop"}, "got 'colour_crop': correct 'colour'"),
        ({"storage": "float16"}, "expected storage among float32, bfloat16, got 'float16'"),
        ({"seed": -1}, "expected seed of at least 0"),
        ({"seed": 2**63}, "expected seed of at most"),
        ({"threads": 5000}, "expected threads of at most 4096"),
        ({"chunk": -1}, "expected chunk of at least 0"),
        ({"device": "gpu"}, "expected device among auto, cpu, cuda"),
        ({"student": StudentConfig(initialization="fixed")}, "expected fresh students as experts"),
    ],
)
def test_wrong_values_are_named(changes, expected):
    with pytest.raises(ValueError, match=expected):
        ExpertsConfig(**changes)


@pytest.mark.parametrize("augmentation", ["auto", "none", "color_crop", "flip"])
def test_augmentations_are_strategies_none_or_auto(augmentation):
    assert ExpertsConfig(augmentation=augmentation).augmentation == augmentation


@pytest.mark.parametrize(
    ("config", "folder"),
    [
        (ExpertsConfig(), "experts/digits-convnet-3-128"),
        (ExpertsConfig(data=DataConfig(source="cifar10", zca=True)), "experts/cifar10-zca-convnet-3-128"),
        (ExpertsConfig(student=StudentConfig(architecture="mlp"), output="o"), "o/digits-mlp"),
        (ExpertsConfig(data=DataConfig(source="folder:/data/my pets"), name=""), "experts/my pets-convnet-3-128"),
        (ExpertsConfig(data=DataConfig(source="npz:pets.npz")), "experts/pets-convnet-3-128"),
        (ExpertsConfig(data=DataConfig(source="folder:/")), "experts/folder-convnet-3-128"),
        (ExpertsConfig(name="mine"), "experts/mine"),
    ],
)
def test_the_folder_says_what_is_inside(config, folder):
    assert config.folder == Path(folder)
    assert config.as_dict()["name"] == config.folder.name
    assert config.as_dict()["data"]["source"] == config.data.source


def test_it_is_frozen_and_needs_no_torch():
    with pytest.raises(FrozenInstanceError):
        ExpertsConfig().count = 3
    code = "import sys, fastdistill.experts_config; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
