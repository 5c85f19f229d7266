from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, is_dataclass, replace
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import pytest
import yaml

from fastdistill import config
from fastdistill.config import (
    METHODS,
    DataConfig,
    EvaluationConfig,
    MatchingConfig,
    RunConfig,
    StudentConfig,
    UnrolledConfig,
    loops,
    matching_recipe,
    preset_path,
    presets,
)

SETS = ("mnist", "fashionmnist", "svhn", "cifar10", "cifar100")
CELLS = [(method, source, ipc) for method in ("dc", "dsa") for source in SETS for ipc in (1, 10, 50)]


def build(kind: Any, values: dict[str, Any]) -> Any:
    """A dataclass from plain values; unknown keys and values of another type than declared are errors."""
    hints = get_type_hints(kind)
    if kind is RunConfig:
        hints["method"] = METHODS[values.get("method", {}).get("kind", "matching")]
    unknown = set(values) - set(hints)
    assert not unknown, f"{kind.__name__} has no {sorted(unknown)}"
    built = {}
    for key, value in values.items():
        hint = get_origin(hints[key]) or hints[key]
        built[key] = build(hint, value) if is_dataclass(hint) else value
        assert type(built[key]) is hint, f"{kind.__name__}.{key} needs {hint.__name__}, got {value!r}"
    return kind(**built)


def load(name: str) -> RunConfig:
    return build(RunConfig, yaml.safe_load(preset_path(name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads(name: str) -> None:
    assert isinstance(load(name), RunConfig)


@pytest.mark.parametrize(("method", "source", "ipc"), CELLS)
def test_a_published_cell_holds_the_published_recipe(method: str, source: str, ipc: int) -> None:
    run = load(f"{method}/{source}-{ipc}")
    assert run.method == matching_recipe(method, ipc, flip=source not in ("mnist", "svhn"))
    assert run.student == StudentConfig()
    assert run.data == DataConfig(source=source)
    assert run.evaluation == EvaluationConfig(protocol=method, validation_every=run.method.steps // 5)
    assert (run.name, run.ipc, run.students, run.runs) == (f"{method}-{source}-{ipc}", ipc, 1, 1)
    assert run.method.steps % run.checkpoint_every == run.method.steps % run.log_every == 0


@pytest.mark.parametrize(("method", "source", "ipc"), CELLS)
def test_a_published_cell_names_its_paper_and_its_accuracy(method: str, source: str, ipc: int) -> None:
    lines = preset_path(f"{method}/{source}-{ipc}").read_text(encoding="utf-8").splitlines()
    head = " ".join(lines[: next(index for index, line in enumerate(lines) if not line.startswith("#"))])
    assert "Zhao" in head and f"({method.upper()}" in head
    assert f", {ipc} image" in head and " % " in head


UNROLLED = {
    "mnist-fixed": (1, 1, "lenet", "fixed", 0.02, 59),
    "mnist-random": (10, 10, "lenet", "fresh", 0.02, 59),
    "cifar10-fixed": (10, 10, "alexcifarnet", "fixed", 0.001, 49),
    "cifar10-random": (10, 10, "alexcifarnet", "fresh", 0.001, 49),
}


@pytest.mark.parametrize("name", UNROLLED)
def test_a_cell_of_dataset_distillation_holds_the_published_recipe(name: str) -> None:
    ipc, batches, architecture, initialization, rate, epoch = UNROLLED[name]
    run = load(f"dd/{name}")
    assert run.method == UnrolledConfig(
        steps=400 * epoch,
        batches=batches,
        epochs=3,
        real_batch=1024,
        inner_learning_rate=rate,
        learning_rate=0.01,
        beta1=0.5,
        beta2=0.999,
        decay_every=40 * epoch,
        decay=0.5,
    )
    assert run.student == StudentConfig(
        architecture=architecture, weights="xavier_normal", initialization=initialization
    )
    assert (run.name, run.ipc, run.students, run.evaluation.protocol) == (f"dd-{name}", ipc, 1, "own")
    assert run.method.steps % run.evaluation.validation_every == run.method.steps % run.checkpoint_every == 0
    head = preset_path(f"dd/{name}").read_text(encoding="utf-8")
    assert "Wang" in head and " % " in head.replace("%.", "% ")
    assert ("augment the real images" in head) == name.startswith("cifar10")


def test_a_misspelt_key_does_not_load() -> None:
    with pytest.raises(AssertionError, match="has no"):
        build(RunConfig, {"method": {"step": 10}})
    with pytest.raises(AssertionError, match="needs float"):
        build(RunConfig, {"method": {"image_learning_rate": "1e-1"}})


@pytest.mark.parametrize(
    ("ipc", "expected"),
    [(1, (1, 1)), (10, (10, 50)), (20, (20, 25)), (30, (30, 20)), (40, (40, 15)), (50, (50, 10))],
)
def test_loops_are_the_published_table(ipc: int, expected: tuple[int, int]) -> None:
    assert loops(ipc) == expected


@pytest.mark.parametrize(("ipc", "expected"), [(2, (2, 1)), (9, (9, 50)), (24, (24, 25)), (100, (100, 10))])
def test_loops_between_the_table_take_the_nearest_entry(ipc: int, expected: tuple[int, int]) -> None:
    assert loops(ipc) == expected


def test_recipes_of_both_methods() -> None:
    dc, dsa = matching_recipe("dc", 10), matching_recipe("dsa", 10)
    assert dc == MatchingConfig(steps=10_000, outer_loop=10, inner_loop=50)
    assert dsa == replace(dc, start="real", augmentation="color_crop_cutout_flip_scale_rotate")
    assert matching_recipe("dsa", 10, flip=False).augmentation == "color_crop_cutout_scale_rotate"
    assert matching_recipe("dc", 10, steps=7, distance="mse") == replace(dc, steps=7, distance="mse")
    with pytest.raises(ValueError, match=r"^expected method among dc, dsa, got 'dca': did you mean 'd.+'$"):
        matching_recipe("dca", 1)


Maker = Callable[..., object]
REFUSED: list[tuple[Maker, dict[str, Any], str]] = [
    (DataConfig, {"validation_fraction": 1.0}, "expected a validation_fraction in [0, 1), got 1.0: it is a share"),
    (DataConfig, {"validation_fraction": -0.1}, "expected a validation_fraction in [0, 1), got -0.1: it is a share"),
    (DataConfig, {"validation_fraction": float("nan")}, "expected a validation_fraction in [0, 1), got nan: it is"),
    (StudentConfig, {"architecture": "convnett"}, "got 'convnett': did you mean 'convnet'"),
    (StudentConfig, {"architecture": "zzz"}, "resnet18ap, got 'zzz': choose one of these"),
    (StudentConfig, {"norm": "instanse"}, "expected norm among none, instance, group, layer, batch, got 'instanse'"),
    (StudentConfig, {"activation": "rellu"}, "expected activation among relu, leaky_relu, sigmoid, swish, softplus"),
    (StudentConfig, {"pooling": "mean"}, "expected pooling among none, avg, max, got 'mean': choose one of these"),
    (StudentConfig, {"weights": "kaiming"}, "orthogonal, got 'kaiming': did you mean 'kaiming_fan_in'"),
    (StudentConfig, {"initialization": "new"}, "expected initialization among fresh, fixed, pretrained, got 'new'"),
    (StudentConfig, {"depth": 0}, "expected depth of at least 1, got 0: raise it"),
    (StudentConfig, {"width": 0}, "expected width of at least 1, got 0: raise it"),
    (StudentConfig, {"initialization": "pretrained"}, "got '' with 'pretrained': set both or neither"),
    (StudentConfig, {"pretrained": "folder"}, "got 'folder' with 'fresh': set both or neither"),
    (MatchingConfig, {"distance": "cosine"}, "expected distance among ours, mse, l1, cos, got 'cosine': did you mean"),
    (MatchingConfig, {"start": "random"}, "expected start among noise, real, got 'random': choose one of these"),
    (MatchingConfig, {"steps": 0}, "expected steps of at least 1, got 0: raise it"),
    (MatchingConfig, {"real_batch": 0}, "expected real_batch of at least 1, got 0: raise it"),
    (MatchingConfig, {"outer_loop": 0}, "expected outer_loop of at least 1, got 0: raise it"),
    (MatchingConfig, {"inner_batch": 0}, "expected inner_batch of at least 1, got 0: raise it"),
    (MatchingConfig, {"inner_loop": -1}, "expected inner_loop of at least 0, got -1: raise it"),
    (MatchingConfig, {"image_momentum": -0.5}, "expected an image_momentum in [0, 1), got -0.5"),
    (MatchingConfig, {"image_learning_rate": 0.0}, "expected a positive, finite image_learning_rate, got 0.0: raise"),
    (MatchingConfig, {"image_learning_rate": float("inf")}, "expected a positive, finite image_learning_rate, got inf"),
    (MatchingConfig, {"inner_learning_rate": -1.0}, "expected a positive, finite inner_learning_rate, got -1.0: raise"),
    (MatchingConfig, {"kind": "unrolled"}, "expected the kind matching of these settings, got 'unrolled': leave"),
    (UnrolledConfig, {"kind": "matching"}, "expected the kind unrolled of these settings, got 'matching': leave"),
    (UnrolledConfig, {"optimizer": "adm"}, "expected optimizer among sgd, momentum, adam, got 'adm': did you mean"),
    (UnrolledConfig, {"batches": 0}, "expected batches of at least 1, got 0: raise it"),
    (UnrolledConfig, {"keep": 0}, "expected keep of at least 1, got 0: raise it"),
    (UnrolledConfig, {"beta1": 1.0}, "expected beta1 in [0, 1), got 1.0"),
    (UnrolledConfig, {"learning_rate": 0.0}, "expected a positive, finite learning_rate, got 0.0"),
    (UnrolledConfig, {"learn_momenta": True}, "got sgd with 0.9: use momentum or adam"),
    (RunConfig, {"method": UnrolledConfig()}, "expected ipc to be a multiple of the 10 batches, got 1: change"),
    (EvaluationConfig, {"protocol": "dsaa"}, "expected protocol among dc, dsa, default, own, got 'dsaa': did you mean"),
    (EvaluationConfig, {"students": 0}, "expected students of at least 1, got 0: raise it"),
    (EvaluationConfig, {"whole_students": 0}, "expected whole_students of at least 1, got 0: raise it"),
    (EvaluationConfig, {"validation_students": 0}, "expected validation_students of at least 1, got 0: raise it"),
    (EvaluationConfig, {"validation_epochs": 0}, "expected validation_epochs of at least 1, got 0: raise it"),
    (EvaluationConfig, {"whole_epochs": -1}, "expected whole_epochs of at least 0, got -1: raise it"),
    (EvaluationConfig, {"validation_every": -1}, "expected validation_every of at least 0, got -1: raise it"),
    (RunConfig, {"name": ""}, "expected a name that is one folder name, got '': leave out slashes"),
    (RunConfig, {"name": ".."}, "expected a name that is one folder name, got '..': leave out slashes"),
    (RunConfig, {"name": "../up"}, "expected a name that is one folder name, got '../up': leave out slashes"),
    (RunConfig, {"name": "a\\b"}, "expected a name that is one folder name, got 'a\\\\b': leave out slashes"),
    (RunConfig, {"ipc": 0}, "expected ipc of at least 1, got 0: raise it"),
    (RunConfig, {"students": 0}, "expected students of at least 1, got 0: raise it"),
    (RunConfig, {"runs": 0}, "expected runs of at least 1, got 0: raise it"),
    (RunConfig, {"log_every": 0}, "expected log_every of at least 1, got 0: raise it"),
    (RunConfig, {"checkpoint_every": 0}, "expected checkpoint_every of at least 1, got 0: raise it"),
    (RunConfig, {"threads": -1}, "expected threads of at least 0, got -1: raise it"),
    (RunConfig, {"chunk": -1}, "expected chunk of at least 0, got -1: raise it"),
    (RunConfig, {"picture_every": -1}, "expected picture_every of at least 0, got -1: raise it"),
    (RunConfig, {"seed": -1}, "expected seed of at least 0, got -1: raise it"),
    (RunConfig, {"device": "gpu"}, "expected device among auto, cpu, cuda, got 'gpu': "),
    (RunConfig, {"dtype": "float"}, "expected dtype among float32, float64, got 'float': did you mean"),
]


@pytest.mark.parametrize(("kind", "values", "message"), REFUSED, ids=[f"{k.__name__}-{v}" for k, v, _ in REFUSED])
def test_a_wrong_value_is_refused_in_one_sentence(kind: Maker, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        kind(**values)
    text = str(refusal.value)
    assert message in text
    assert text.startswith("expected ") and ", got " in text and ": " in text.partition(", got ")[2]
    assert "\n" not in text and not text.endswith(".")


def test_values_at_the_limits_are_taken() -> None:
    MatchingConfig(steps=1, inner_loop=0, image_momentum=0.0)
    StudentConfig(initialization="pretrained", pretrained="folder")
    EvaluationConfig(validation_every=0, whole_epochs=0)
    assert DataConfig(validation_fraction=0.0).validation_fraction == 0


def test_configurations_are_frozen_and_share_no_list() -> None:
    with pytest.raises(FrozenInstanceError):
        RunConfig().ipc = 2  # type: ignore[misc]
    assert MatchingConfig().tensors is not MatchingConfig().tensors


def test_as_dict_comes_back_through_yaml() -> None:
    run = RunConfig(
        name="näme: #1",
        ipc=10,
        method=matching_recipe("dsa", 10, tensors=["head.weight"], image_learning_rate=1e-5),
        student=StudentConfig(architecture="mlp", initialization="pretrained", pretrained="a/b"),
    )
    assert build(RunConfig, run.as_dict()) == run
    assert build(RunConfig, yaml.safe_load(yaml.safe_dump(run.as_dict()))) == run


def test_presets_are_listed_by_method_and_cell() -> None:
    assert {f"{method}/{source}-{ipc}" for method, source, ipc in CELLS} <= set(presets())
    assert list(presets()) == sorted(presets())
    assert preset_path("dc/mnist-1").is_file()


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"^expected a preset .*, got 'dc/minst-10': try .*\bdc/mnist-10\b"):
        preset_path("dc/minst-10")
    with pytest.raises(ValueError, match=r", got '\?': try \w+/\w+-\d+"):
        preset_path("?")


def test_the_configuration_imports_no_torch() -> None:
    code = "import sys, fastdistill.config; print(sorted({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    root = Path(config.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
