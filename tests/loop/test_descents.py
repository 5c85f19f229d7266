"""What settings become outer optimisers; how these move is tested with them."""

from __future__ import annotations

import pytest
import torch

from fastdistill.generator_config import GeneratorConfig
from fastdistill.loop.descent import Adam, Momentum, Parted
from fastdistill.loop.descents import make_descent
from fastdistill.loop.limits import Joint, Limited
from fastdistill.method_configs import DistributionConfig, ImplicitConfig, MatchingConfig, MethodConfig, UnrolledConfig

ADAM = {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-5, "decay_every": 7, "decay": 0.25, "final_share": 0.1}


def test_unrolled_training_hands_its_adam_every_setting() -> None:
    found = make_descent(UnrolledConfig(steps=90, learning_rate=0.3, clip=2.0, clip_norm=3.0, **ADAM))
    assert found == Limited(descent=Adam(rate=0.3, steps=90, **ADAM), factor=2.0, norm=3.0)


def test_unrolled_training_by_sgd_moves_all_that_it_can_learn_at_one_rate() -> None:
    method = UnrolledConfig(outer_optimizer="sgd", learning_rate=10.0, beta1=0.5, decay_every=0, learn_labels=True)
    found = make_descent(method)
    rates = dict.fromkeys(("images", "rates", "momenta", "labels"), 10.0)
    assert found == Limited(descent=Momentum(rates=rates, momentum=0.5), floors={"labels": 0.0})


def test_matching_bounds_the_gradient_of_images() -> None:
    found = make_descent(MatchingConfig(image_learning_rate=1.0, image_momentum=0.0, clip_norm=2.0))
    images = torch.zeros(2, 3, dtype=torch.float64)
    gradient = torch.tensor([[0.0, 6.0, 8.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    moved, _ = found.step({"images": images}, {"images": gradient}, found.start({"images": images}), 0)
    expected = -gradient * torch.tensor([[0.2], [1.0]], dtype=torch.float64)  # the second run is short enough
    assert torch.allclose(moved["images"], expected, rtol=1e-12)


@pytest.mark.parametrize(
    "method",
    [
        MatchingConfig(steps=90, clip_norm=2.0),
        UnrolledConfig(steps=90, clip=2.0, clip_norm=2.0),
        ImplicitConfig(steps=90),
        DistributionConfig(steps=90),
    ],
)
def test_a_generator_has_an_adam_of_its_own_over_the_steps_of_the_run(method: MethodConfig) -> None:
    config = GeneratorConfig(
        architecture="full", learning_rate=0.3, beta1=0.8, beta2=0.9, epsilon=1e-5, final_share=0.1, clip_norm=4.0
    )
    found = make_descent(method, config)
    assert isinstance(found, Parted)
    adam = Adam(rate=0.3, beta1=0.8, beta2=0.9, epsilon=1e-5, final_share=0.1, steps=90)
    assert found.own == Joint(descent=adam, norm=4.0)
    # what bounds the images' gradient bounds nothing, since these are not learned
    assert not isinstance(found.others, Limited) or (found.others.factor, found.others.norm) == (0.0, 0.0)
    assert make_descent(method, GeneratorConfig()) == make_descent(method)
