"""The outer optimiser of every method, and of a generator."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from fastdistill.generator_config import GeneratorConfig
from fastdistill.loop.decoded import belongs
from fastdistill.loop.descent import Adam, Descent, Momentum, Parted
from fastdistill.loop.limits import Joint, Limited
from fastdistill.method_configs import (
    DistributionConfig,
    ImplicitConfig,
    MatchingConfig,
    MethodConfig,
    TrajectoryConfig,
    UnrolledConfig,
)


def make_descent(method: MethodConfig, generator: GeneratorConfig | None = None) -> Descent:
    """The outer optimiser of a method, and of the generator where there is one."""
    descent = _descent_of(method)
    if generator is None or not generator.learned:
        return descent
    adam = Adam(
        rate=generator.learning_rate,
        beta1=generator.beta1,
        beta2=generator.beta2,
        epsilon=generator.epsilon,
        final_share=generator.final_share,
        steps=method.steps,
    )
    if isinstance(descent, Limited):
        descent = replace(descent, factor=0.0, norm=0.0)  # what it bounds is not learned
    return Parted(own=Joint(descent=adam, norm=generator.clip_norm), others=descent, belongs=belongs)


def _descent_of(method: MethodConfig) -> Descent:
    if isinstance(method, DistributionConfig):
        return Momentum(rates={"images": method.image_learning_rate}, momentum=method.image_momentum)
    if isinstance(method, MatchingConfig):
        sgd = Momentum(rates={"images": method.image_learning_rate}, momentum=method.image_momentum)
        return Limited(descent=sgd, norm=method.clip_norm)
    if isinstance(method, UnrolledConfig):
        floors = _label_floor(method.learn_labels)
        return Limited(descent=_of_training(method), factor=method.clip, norm=method.clip_norm, floors=floors)
    if isinstance(method, TrajectoryConfig):
        learned = method.labels == "learned"
        rates = {"images": method.image_learning_rate, "rate": method.rate_learning_rate}
        momentum = Momentum(
            rates=rates | ({"labels": method.label_learning_rate} if learned else {}), momentum=method.momentum
        )
        return Limited(descent=momentum, floors={"rate": method.least_learning_rate, **_label_floor(learned)})
    if isinstance(method, ImplicitConfig):
        return Limited(descent=_of_images(method), norm=method.clip_norm, floors=_label_floor(method.learn_labels))
    assert_never(method)


def _of_training(method: UnrolledConfig) -> Descent:
    if method.outer_optimizer == "sgd":
        names = ("images", "rates", "momenta", "labels")
        return Momentum(rates=dict.fromkeys(names, method.learning_rate), momentum=method.beta1)
    return Adam(
        rate=method.learning_rate,
        beta1=method.beta1,
        beta2=method.beta2,
        epsilon=method.epsilon,
        decay_every=method.decay_every,
        decay=method.decay,
        final_share=method.final_share,
        steps=method.steps,
    )


def _of_images(method: ImplicitConfig) -> Descent:
    if method.outer_optimizer == "sgd":
        return Momentum(rates=dict.fromkeys(("images", "labels"), method.learning_rate), momentum=method.momentum)
    return Adam(rate=method.learning_rate, beta1=method.momentum, decay_every=method.decay_every, decay=method.decay)


def _label_floor(learned: bool) -> dict[str, float]:
    return {"labels": 0.0} if learned else {}
