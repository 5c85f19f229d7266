from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from fastdistill.method_configs import (
    METHODS,
    DistributionConfig,
    ImplicitConfig,
    MatchingConfig,
    TrajectoryConfig,
    UnrolledConfig,
    loops,
    matching_recipe,
)


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
    (MatchingConfig, {"distance": "cosine"}, "among ours, mse, l1, l1_mean, cos, got 'cosine': did you mean"),
    (MatchingConfig, {"start": "random"}, "expected start among noise, uniform, real, got 'random': choose one of"),
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
    (DistributionConfig, {"kind": "matching"}, "expected the kind distribution of these settings, got 'matching': le"),
    (DistributionConfig, {"start": "unit"}, "expected start among noise, real, got 'unit': choose one of these"),
    (DistributionConfig, {"steps": 0}, "expected steps of at least 1, got 0: raise it"),
    (DistributionConfig, {"real_batch": 0}, "expected real_batch of at least 1, got 0: raise it"),
    (DistributionConfig, {"image_momentum": 1.0}, "expected image_momentum in [0, 1), got 1.0"),
    (DistributionConfig, {"image_learning_rate": 0.0}, "expected a positive, finite image_learning_rate, got 0.0: rai"),
    (
        DistributionConfig,
        {"augmentation": "crop_blur"},
        "expected augmentation of color, crop, cutout, flip, scale, rot",
    ),
    (UnrolledConfig, {"kind": "matching"}, "expected the kind unrolled of these settings, got 'matching': leave"),
    (UnrolledConfig, {"optimizer": "adm"}, "expected optimizer among sgd, momentum, adam, got 'adm': did you mean"),
    (UnrolledConfig, {"batches": 0}, "expected batches of at least 1, got 0: raise it"),
    (UnrolledConfig, {"keep": 0}, "expected keep of at least 1, got 0: raise it"),
    (UnrolledConfig, {"beta1": 1.0}, "expected beta1 in [0, 1), got 1.0"),
    (UnrolledConfig, {"learning_rate": 0.0}, "expected a positive, finite learning_rate, got 0.0"),
    (UnrolledConfig, {"learn_momenta": True}, "got sgd with 0.9: use momentum or adam"),
    (MatchingConfig, {"augmentation": "crop_rotat"}, "or none, got 'crop_rotat': correct 'rotat'"),
    (UnrolledConfig, {"augmentation": "pad_crop_flip"}, "expected augmentation of color, crop, cutout, flip, scale"),
    (UnrolledConfig, {"real_augmentation": "crop_"}, "expected real_augmentation of color, crop, cutout, flip, scale"),
    (UnrolledConfig, {"real_augmentation": "pad_crop"}, "or pad_crop_flip or none, got 'pad_crop': correct 'pad'"),
    (
        UnrolledConfig,
        {"start": "units"},
        "expected start among noise, unit, uniform, real, got 'units': did you mean 'unit'",
    ),
    (UnrolledConfig, {"window_start": "lst"}, "expected window_start among random, last, moving, got 'lst': did you"),
    (UnrolledConfig, {"storage": "float16"}, "expected storage among same, bfloat16, got 'float16': did you mean"),
    (UnrolledConfig, {"window": -1}, "expected window of at least 0, got -1: raise it"),
    (UnrolledConfig, {"window": 31}, "expected a window of at most the 30 inner steps, got 31: lower method.window"),
    (
        UnrolledConfig,
        {"window": 20, "window_least": 11},
        "expected a window_least of at most 10, got 11: the window of 20",
    ),
    (
        UnrolledConfig,
        {"window_least": 1},
        "expected a window_least of at most 0, got 1: the window of 30 steps must end",
    ),
    (UnrolledConfig, {"window_every": 0}, "expected window_every of at least 1, got 0: raise it"),
    (UnrolledConfig, {"intermediate_every": -1}, "expected intermediate_every of at least 0, got -1: raise it"),
    (UnrolledConfig, {"clip": -0.5}, "expected clip of at least 0, got -0.5: raise it"),
    (UnrolledConfig, {"drawn_classes": 5}, "expected drawn_classes only for drawn steps, got 5: set method.drawn"),
    (UnrolledConfig, {"drawn": True}, "expected steps in a fixed order for rates or momenta of their own, got drawn"),
    (UnrolledConfig, {"keep": 2, "storage": "bfloat16"}, "expected either keep above 1 or a storage of its own, got 2"),
    (UnrolledConfig, {"inner_momentum": 1.0}, "expected inner_momentum in [0, 1), got 1.0"),
    (UnrolledConfig, {"optimizer": "adam", "inner_momentum": 0.0, "learn_momenta": True}, "got adam with 0.0: use mom"),
    (UnrolledConfig, {"grow_every": -1}, "expected grow_every of at least 0, got -1: raise it"),
    (UnrolledConfig, {"grow_every": 5, "window": 3}, "expected either a window or steps that grow, got 3 and 5: leave"),
    (UnrolledConfig, {"grow_every": 3, "steps": 78}, "expected all 30 inner steps to be trained by the last of 78 upd"),
    (UnrolledConfig, {"grow_backwards": True}, "expected grow_backwards only where steps grow and students have sgd"),
    (UnrolledConfig, {"grow_every": 1, "grow_backwards": True, "optimizer": "adam"}, "got grow_every 1 and adam: set"),
    (UnrolledConfig, {"final_share": 0.0}, "expected a positive, finite final_share, got 0.0: raise it above zero"),
    (UnrolledConfig, {"final_share": 2.0}, "expected final_share of at most 1, got 2.0: lower it"),
    (UnrolledConfig, {"epsilon": 0.0}, "expected a positive, finite epsilon, got 0.0: raise it above zero"),
    (UnrolledConfig, {"clip_norm": -1.0}, "expected clip_norm of at least 0, got -1.0: raise it"),
    (UnrolledConfig, {"outer_optimizer": "sdg"}, "expected outer_optimizer among adam, sgd, got 'sdg': did you mean"),
    (
        UnrolledConfig,
        {"outer_optimizer": "sgd"},
        "expected decay_every 0 and final_share 1 for the outer_optimizer sg",
    ),
    (MatchingConfig, {"clip_norm": -1.0}, "expected clip_norm of at least 0, got -1.0: raise it"),
    (MatchingConfig, {"inner_momentum": 1.0}, "expected inner_momentum in [0, 1), got 1.0"),
    (TrajectoryConfig, {"kind": "unrolled"}, "expected the kind trajectory of these settings, got 'unrolled': leave"),
    (TrajectoryConfig, {"gradient": "tsla"}, "expected gradient among exact, tesla, got 'tsla': did you mean 'tesla'"),
    (TrajectoryConfig, {"labels": "soft"}, "expected labels among hard, expert, learned, got 'soft': choose one"),
    (TrajectoryConfig, {"inner_steps": 0}, "expected inner_steps of at least 1, got 0: raise it"),
    (TrajectoryConfig, {"max_start_epoch": 0}, "expected max_start_epoch of at least 1, got 0: raise it"),
    (TrajectoryConfig, {"inner_learning_rate": 1e-7}, "expected inner_learning_rate of at least 1e-06, got 1e-07"),
    (TrajectoryConfig, {"halved": True}, "expected halved only with the gradient tesla, got exact: leave it out"),
    (TrajectoryConfig, {"keep": 2, "storage": "bfloat16"}, "expected either keep above 1 or a storage of its own"),
    (ImplicitConfig, {"solver": "cg", "scaled": False}, "expected scaled to be false only for the solver neumann"),
    (ImplicitConfig, {"warm_start": True}, "expected a warm_start only for the solver cg and students of several"),
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
    UnrolledConfig(window=30, window_least=0)
    UnrolledConfig(window=20, window_least=10, clip=0.0, intermediate_every=0)
    UnrolledConfig(drawn=True, drawn_classes=5, learn_rates=False)
    UnrolledConfig(real_augmentation="pad_crop_flip", augmentation="flip_rotate", start="unit")


def test_steps_grow_from_four_to_all() -> None:
    config = UnrolledConfig(grow_every=3, steps=79)
    assert [config.trained_steps(step) for step in (0, 2, 3, 6, 75, 77, 78, 1000)] == [4, 4, 5, 6, 29, 29, 30, 30]
    assert UnrolledConfig().trained_steps(0) == 30
    assert UnrolledConfig(epochs=1, batches=3, grow_every=3).trained_steps(0) == 3


def test_every_kind_builds_from_its_name() -> None:
    assert {name: make().kind for name, make in METHODS.items()} == {name: name for name in METHODS}


def test_settings_are_frozen_and_share_no_list() -> None:
    with pytest.raises(FrozenInstanceError):
        UnrolledConfig().window = 2  # type: ignore[misc]
    assert MatchingConfig().tensors is not MatchingConfig().tensors


def test_an_inner_step_takes_its_share_of_the_images() -> None:
    assert UnrolledConfig(batches=5, epochs=4).inner_steps == 20
    assert UnrolledConfig(batches=5).batch(classes=10, ipc=10) == 20
    few = UnrolledConfig(batches=5, drawn=True, drawn_classes=3, learn_rates=False)
    assert few.batch(classes=10, ipc=10) == 6
