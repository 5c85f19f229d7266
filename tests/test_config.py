from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, is_dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import pytest
import yaml

from fastdistill import config
from fastdistill.config import DataConfig, EvaluationConfig, RunConfig, StudentConfig, preset_path, presets
from fastdistill.generator_config import GeneratorConfig
from fastdistill.method_configs import (
    METHODS,
    DistributionConfig,
    ImplicitConfig,
    MatchingConfig,
    TrajectoryConfig,
    UnrolledConfig,
    matching_recipe,
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
        real_augmentation="pad_crop_flip" if "cifar10" in name else "none",
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


DM_SOURCES = ("mnist", "fashionmnist", "svhn", "cifar10", "cifar100", "tiny")


@pytest.mark.parametrize("ipc", [1, 10, 50])
@pytest.mark.parametrize("source", DM_SOURCES)
def test_a_cell_of_distribution_matching_holds_the_published_recipe(source: str, ipc: int) -> None:
    run = load(f"dm/{source}-{ipc}")
    digits = source in ("mnist", "svhn")
    assert run.method == DistributionConfig(
        steps=20_000,
        real_batch=256,
        start="real",
        image_learning_rate=1.0,
        image_momentum=0.5,
        augmentation=f"color_crop_cutout_{'' if digits else 'flip_'}scale_rotate",
    )
    assert run.student == StudentConfig(depth=4 if source == "tiny" else 3)
    assert run.data == DataConfig(source="folder:data/tiny-imagenet" if source == "tiny" else source)
    assert run.evaluation.protocol == "dsa"
    assert (run.name, run.ipc, run.students, run.runs) == (f"dm-{source}-{ipc}", ipc, 1, 1)
    head = preset_path(f"dm/{source}-{ipc}").read_text(encoding="utf-8")
    assert "(DM): Zhao and Bilen" in head and f", {ipc} image" in head and " % " in head.replace("%.", "% ")


FOLDERS = {"tiny": "tiny-imagenet", "imagenette": "imagenette", "imagenet": "imagenet-64"}
# T, expert epochs, start epochs, batch, learning rates of images and step size, step size, whitened, depth, students
TRAJECTORY = {
    "mtt/cifar10-1": (50, 2, 2, 0, 100.0, 1e-7, 0.01, True, 3, 5),
    "mtt/cifar10-10": (30, 2, 20, 0, 100.0, 1e-5, 0.001, True, 3, 5),
    "mtt/cifar10-50": (30, 2, 40, 0, 1000.0, 1e-5, 0.001, False, 3, 5),
    "mtt/cifar100-1": (20, 3, 20, 0, 1000.0, 1e-5, 0.01, True, 3, 5),
    "mtt/cifar100-10": (20, 2, 20, 0, 1000.0, 1e-5, 0.01, False, 3, 5),
    "mtt/cifar100-50": (80, 2, 40, 125, 1000.0, 1e-5, 0.01, True, 3, 5),
    "mtt/tiny-1": (10, 2, 10, 0, 10000.0, 1e-4, 0.01, False, 3, 5),
    "mtt/tiny-10": (20, 2, 40, 200, 10000.0, 1e-4, 0.01, False, 3, 5),
    "mtt/tiny-50": (20, 2, 40, 300, 10000.0, 1e-4, 0.01, False, 4, 5),
    "mtt/imagenette-1": (20, 2, 10, 0, 1e5, 1e-6, 0.01, False, 5, 5),
    "mtt/imagenette-10": (20, 2, 10, 20, 1e5, 1e-6, 0.01, False, 5, 5),
    "tesla/imagenet-1": (10, 3, 10, 100, 1e4, 1e-4, 0.01, False, 4, 3),
    "tesla/cifar10-1": (50, 2, 5, 0, 1000.0, 1e-7, 0.01, False, 3, 3),
    "tesla/cifar100-50": (80, 2, 40, 125, 1000.0, 1e-5, 0.01, True, 3, 3),
}


@pytest.mark.parametrize("name", TRAJECTORY)
def test_a_cell_of_trajectory_matching_holds_the_published_recipe(name: str) -> None:
    steps, epochs, starts, batch, images, rate, step_size, zca, depth, students = TRAJECTORY[name]
    method, _, cell = name.partition("/")
    source, _, ipc = cell.partition("-")
    run = load(name)
    assert run.method == TrajectoryConfig(
        experts=run.method.experts,
        steps=5000 if method == "mtt" else 10_000,
        inner_steps=steps,
        expert_epochs=epochs,
        max_start_epoch=starts,
        batch=batch,
        gradient="exact" if method == "mtt" else "tesla",
        halved=method == "tesla",
        start="real",
        labels="expert" if source == "imagenet" else "hard",
        augmentation="color_crop_cutout_flip_scale_rotate",
        inner_learning_rate=step_size,
        image_learning_rate=images,
        rate_learning_rate=rate,
        momentum=0.5,
    )
    assert starts - 1 + epochs <= 50  # as long as published experts are trained
    data = FOLDERS.get(source, source)
    assert run.method.experts == f"experts/{data}{'-zca' * zca}-convnet-{depth}-128"
    assert run.data == DataConfig(source=f"folder:data/{data}" if source in FOLDERS else source, zca=zca)
    assert run.student == StudentConfig(depth=depth)
    assert (run.name, run.ipc, run.students, run.runs) == (f"{method}-{cell}", int(ipc), 1, 1)
    assert (run.evaluation.protocol, run.evaluation.students) == ("dsa", students)
    assert run.method.steps % run.evaluation.validation_every == run.method.steps % run.checkpoint_every == 0
    head = preset_path(name).read_text(encoding="utf-8")
    assert ("Cazenavette" if method == "mtt" else "Cui") in head and f"fastdistill experts {name}" in head
    assert " % (" in head or source == "imagenette"  # of which no figure was at hand


# T, window, its start, least place, updates an epoch, real batch, outer learning rate, labels, classes a step, depth
RAT = {
    "cifar10-10": (200, 60, "random", 0, 10, 5000, 1e-3, False, 0, 3),
    "cifar100-10": (300, 100, "random", 0, 10, 5000, 1e-3, True, 0, 3),
    "cifar100-1": (130, 90, "last", 0, 10, 5000, 3e-4, True, 0, 3),
    "tiny-10": (300, 100, "random", 0, 100, 1000, 3e-4, True, 50, 4),
    "imagenet-1": (280, 80, "last", 0, 855, 1500, 3e-4, True, 50, 4),
}


@pytest.mark.parametrize("cell", RAT)
def test_a_cell_of_rat_holds_the_published_recipe(cell: str) -> None:
    steps, window, start, least, updates, real, rate, labels, classes, depth = RAT[cell]
    run = load(f"rat/{cell}")
    method = run.method
    assert isinstance(method, UnrolledConfig)
    assert (method.inner_steps, method.window, method.window_start, method.window_least) == (
        steps,
        window,
        start,
        least,
    )
    assert method.steps == 60_000 * updates  # an epoch is a pass over the training set
    assert method.window_every == (updates if start == "random" else 1)  # drawn once an epoch
    assert (method.real_batch, method.learning_rate, method.learn_labels) == (real, rate, labels)
    assert (method.drawn_classes, run.student) == (classes, StudentConfig(depth=depth))
    assert (method.optimizer, method.inner_learning_rate, method.learn_rates, method.clip) == ("adam", 1e-3, False, 2.0)
    assert method.augmentation == method.real_augmentation == "flip_rotate" and method.start == "unit"
    assert method.steps % run.evaluation.validation_every == method.steps % run.checkpoint_every == 0
    head = preset_path(f"rat/{cell}").read_text(encoding="utf-8")
    assert "Feng" in head and " %." in head


AIST = ("matching-pixels", "matching-generator", "unrolled-pixels", "unrolled-generator", "implicit-generator")


@pytest.mark.parametrize("source", ["mnist", "cifar10"])
@pytest.mark.parametrize("cell", (*AIST, "implicit-pixels"))
def test_the_six_cells_of_the_aist_paper_share_all_but_method_and_images(source: str, cell: str) -> None:
    name = f"aist/{source}-{cell}" if cell in AIST else f"ift/{source}-10"
    kind, _, images = cell.partition("-")
    run = load(name)
    method, generator = run.method, run.generator
    assert (method.kind, generator.learned) == (kind, images == "generator")
    assert (run.data, run.student) == (DataConfig(source=source), StudentConfig())
    assert (run.ipc, run.students, run.evaluation.protocol, run.evaluation.students) == (10, 1, "dc", 15)
    assert (method.real_batch, method.inner_learning_rate, method.inner_momentum) == (256, 0.02, 0.5)
    assert method.steps % run.evaluation.validation_every == method.steps % run.checkpoint_every == 0
    if images == "generator":
        clip = {"matching": 1400.0, "unrolled": 10.0, "implicit": 4.0}[kind]
        epsilon = 140 * 1e-8 if kind == "matching" else 1e-8  # both as if the loss were divided by 14 tensors x 10
        own = {"noise": "learned", "distribution": "uniform", "noise_size": 64, "learning_rate": 0.01}
        assert generator == GeneratorConfig(architecture="full", width=128, epsilon=epsilon, clip_norm=clip, **own)
    else:
        assert method.start == "uniform"
    if isinstance(method, MatchingConfig):
        assert (method.steps, method.outer_loop, method.inner_loop, method.inner_batch) == (110 * 10, 10, 10, 100)
        assert method.per_class and method.distance == "ours"
        if images == "pixels":
            assert (method.image_learning_rate, method.image_momentum, method.clip_norm) == (0.1, 0.5, 1000.0)
    elif isinstance(method, UnrolledConfig):
        assert (method.steps, method.batches, method.inner_steps, method.optimizer) == (1000, 1, 10, "momentum")
        assert not (method.learn_rates or method.learn_momenta or method.window or method.intermediate_every)
        if images == "pixels":
            found = (method.outer_optimizer, method.learning_rate, method.beta1, method.clip_norm)
            assert found == ("sgd", 10.0, 0.0, 10.0)
    else:
        assert isinstance(method, ImplicitConfig)
        assert (method.inner_steps, method.hypersteps, method.terms, method.scaled) == (10, 1, 10, False)
        assert (method.steps, method.alpha) == {"pixels": (1070, 0.01), "generator": (1080, 0.001)}[images]
        if images == "pixels":
            assert (method.outer_optimizer, method.learning_rate, method.clip_norm) == ("sgd", 10.0, 10.0)
    head = preset_path(name).read_text(encoding="utf-8")
    assert "Medvedev" in head and "our choice" in head


# T, images a class and step, real batch, learning rate, beta 2, epsilon, steps between further losses
GTN = {"mnist": (64, 13, 128, 0.02, 0.999, 1e-8, 1), "cifar10": (128, 26, 256, 0.004, 0.9, 1e-5, 16)}


@pytest.mark.parametrize("source", GTN)
def test_a_generative_teaching_network_holds_the_published_recipe(source: str) -> None:
    steps, each, real, rate, beta2, epsilon, every = GTN[source]
    run = load(f"gtn/{source}")
    adam = {"learning_rate": rate, "beta1": 0.9, "beta2": beta2, "epsilon": epsilon, "final_share": 0.1}
    assert run.method == UnrolledConfig(
        steps=2000,
        batches=steps,
        epochs=1,
        intermediate_every=every,
        real_batch=real,
        real_augmentation="pad_crop_flip" if source == "cifar10" else "none",
        optimizer="momentum",
        inner_learning_rate=0.02,
        inner_momentum=0.5,
        learn_momenta=True,
        decay_every=0,
        **adam,
    )
    assert run.generator == GeneratorConfig(architecture="upsampling", blocks=steps, **adam)
    assert (run.ipc, run.evaluation.protocol) == (steps * each, "own")
    assert (run.generator.width, run.generator.noise_size, run.generator.noise) == (128, 128, "learned")
    assert run.method.steps % run.evaluation.validation_every == run.method.steps % run.checkpoint_every == 0
    assert "Such" in preset_path(f"gtn/{source}").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", ["mtt", "tesla"])
def test_budgets_of_trajectory_matching_share_their_experts(method: str) -> None:
    run = load(f"{method}/digits-1-cpu")
    assert isinstance(run.method, TrajectoryConfig)
    assert run.method.gradient == {"mtt": "exact", "tesla": "tesla"}[method]
    assert "flip" not in run.method.augmentation  # mirrored digits are other signs
    head = preset_path(f"{method}/digits-1-cpu").read_text(encoding="utf-8")
    epochs = int(head.partition("--epochs ")[2].split()[0])
    assert run.method.max_start_epoch - 1 + run.method.expert_epochs <= epochs
    assert run.method.experts == f"experts/digits-convnet-{run.student.depth}-{run.student.width}"


def test_a_misspelt_key_does_not_load() -> None:
    with pytest.raises(AssertionError, match="has no"):
        build(RunConfig, {"method": {"step": 10}})
    with pytest.raises(AssertionError, match="needs float"):
        build(RunConfig, {"method": {"image_learning_rate": "1e-1"}})


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
    (RunConfig, {"method": UnrolledConfig()}, "expected ipc to be a multiple of the 10 batches, got 1: change"),
    (EvaluationConfig, {"protocol": "dsaa"}, "expected protocol among dc, dsa, default, own, got 'dsaa': did you mean"),
    (RunConfig, {"seconds": -1.0}, "expected seconds of at least 0, got -1.0: raise it"),
    (
        RunConfig,
        {"seconds": 5.0, "ipc": 10, "method": UnrolledConfig(grow_every=5)},
        "expected no seconds for a run whose method.grow_every follows its steps, got 5: leave one out",
    ),
    (
        RunConfig,
        {"seconds": 5.0, "generator": GeneratorConfig(architecture="full", final_share=0.1)},
        "expected no seconds for a run whose generator.final_share follows its steps, got 5",
    ),
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
    StudentConfig(initialization="pretrained", pretrained="folder")
    EvaluationConfig(validation_every=0, whole_epochs=0)
    assert DataConfig(validation_fraction=0.0).validation_fraction == 0


def test_configurations_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        RunConfig().ipc = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("learn_rates", "protocol", "taken"),
    [(True, "own", True), (True, "default", False), (False, "own", True), (False, "dsa", True)],
)
def test_rates_that_are_learned_are_judged_by_their_own_protocol(learn_rates: bool, protocol: str, taken: bool) -> None:
    parts: dict[str, Any] = {
        "method": UnrolledConfig(batches=1, learn_rates=learn_rates),
        "evaluation": EvaluationConfig(protocol=protocol),
    }
    if taken:
        assert RunConfig(**parts).evaluation.protocol == protocol
        return
    with pytest.raises(ValueError, match="expected the protocol own for images that are learned with rates"):
        RunConfig(**parts)


def test_steps_of_their_own_belong_to_unrolled_training() -> None:
    with pytest.raises(ValueError, match=r"got own for the method matching: change evaluation\.protocol"):
        RunConfig(evaluation=EvaluationConfig(protocol="own"))


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
    with pytest.raises(ValueError, match=r", got '\?': try \w+/[\w-]+, "):
        preset_path("?")


def test_the_configuration_imports_no_torch() -> None:
    code = "import sys, fastdistill.config; print(sorted({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    root = Path(config.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
