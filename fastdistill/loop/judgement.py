"""Judging, counted on the meta device: the selections during a run and the arms of its table."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastdistill.config import RunConfig
from fastdistill.derivatives.memory import Footprint, Ledger, trace
from fastdistill.derivatives.plan import choose_batching, forward_cost
from fastdistill.derivatives.primitive import make_sketch
from fastdistill.derivatives.sketch import Sketch
from fastdistill.draws import Purpose
from fastdistill.evaluation.evaluate import store_fetch
from fastdistill.evaluation.protocols import Protocol, protocol
from fastdistill.evaluation.replay import Replay, replay_students
from fastdistill.loop.sizes import META, Sizes, Unseen, synthetic_images
from fastdistill.method_configs import UnrolledConfig
from fastdistill.students.ensemble import student_module
from fastdistill.students.training import Fetch, count_correct, image_fetch, train_students
from fastdistill.students.weights import initial_buffers, initial_weights

if TYPE_CHECKING:
    from fastdistill.loop.plan import Plan

_BATCHES = 3  # batches of a training that are counted: every further one holds the same
_TEST_BLOCK = 1000  # as evaluation normalises them


def selection(config: RunConfig, plan: Plan, sizes: Sizes) -> Footprint:
    """A selection by validation accuracy; nothing without one."""
    evaluation = config.evaluation
    _, held_out = sizes.split(config.data.validation_fraction)
    if not evaluation.validation_every or not held_out:  # to select by nothing is refused by `evaluation.arms.Judge`
        return Footprint()
    return _arm(
        config, plan, sizes, synthetic_images(config, sizes, plan.torch_dtype), evaluation.validation_students, held_out
    )


def table(config: RunConfig, plan: Plan, sizes: Sizes) -> Footprint:
    """The arms of the table at the end, one after the other."""
    evaluation, (kept, _) = config.evaluation, sizes.split(config.data.validation_fraction)
    images = synthetic_images(config, sizes, plan.torch_dtype)
    arms = [_arm(config, plan, sizes, images, evaluation.students, sizes.test)]
    train = Unseen.of(config, sizes, kept)
    if evaluation.random_real and min(kept) >= config.ipc:
        draws = config.runs * evaluation.students
        chosen = torch.empty(draws, len(kept), config.ipc, dtype=torch.int64, device=META)
        drawn = trace(lambda indices: train.batch(indices, plan.torch_dtype), chosen)
        own = torch.empty(draws, *images.shape[1:], dtype=plan.torch_dtype, device=META)
        held = Footprint.of_blocks([drawn.kept])
        arms += [drawn, _arm(config, plan, sizes, own, 1, sizes.test).above(held)]
    if evaluation.whole_epochs:
        fetch = store_fetch(train, plan.torch_dtype)
        arms.append(_judged(config, plan, sizes, fetch, len(train), evaluation.whole_students, sizes.test))
    return Footprint.in_turn(arms)


def _arm(config: RunConfig, plan: Plan, sizes: Sizes, images: Tensor, students: int, test: int) -> Footprint:
    """Students trained on images ``[R, C, M, D, H, W]``, which every student of a run sees."""
    runs, flat = images.shape[0], images.flatten(1, 2)
    own = flat[0] if runs == 1 else flat.repeat_interleave(students, dim=0)
    held = Footprint.of_blocks([own.nbytes] if runs > 1 else [])
    labels = torch.empty(own.shape[-4], dtype=torch.int64, device=META)
    judged = _judged(config, plan, sizes, image_fetch(own, labels), len(labels), runs * students, test)
    return judged.above(held)


def _judged(
    config: RunConfig, plan: Plan, sizes: Sizes, fetch: Fetch, count: int, students: int, test: int
) -> Footprint:
    """Students trained and tested as `evaluation.evaluate.evaluate_students` does."""
    rules = _protocol(config, len(sizes.classes))
    module = student_module(config.student, sizes.shape, len(sizes.classes))
    ledger, cost = Ledger(), forward_cost(module, sizes.shape)
    indices, dtype = torch.arange(students, device=META), plan.torch_dtype
    unseen = Unseen.of(config, sizes, (test,))

    def sketch(images: int) -> Sketch:
        batching = choose_batching(cost, torch.device(plan.device), students=students, groups=1, images=images)
        return make_sketch(module, batching, ledger)

    fetched = 0

    def some(chosen: Tensor | None) -> tuple[Tensor, Tensor]:
        nonlocal fetched
        fetched += 1
        if fetched > _BATCHES:
            raise _Enough
        return fetch(chosen)

    replay = rules.replay
    trainer = sketch(min(count, rules.training.batch) if replay is None else replay.order.shape[1])
    tester = sketch(_TEST_BLOCK)
    with ledger:
        weights = initial_weights(
            module, config.student.weights, seed=0, step=0, students=indices, purpose=Purpose.EVALUATION_WEIGHTS
        ).to(dtype)
        buffers = initial_buffers(module, students, dtype=dtype, device=META)
        with suppress(_Enough):
            if replay is not None:
                spread = replay.spread(students // config.runs)
                replay_students(trainer, weights, buffers, some, spread, augment=rules.augment(0, indices))
                raise _Enough
            train_students(
                trainer,
                weights,
                buffers,
                some,
                count,
                rules.training,
                seed=0,
                students=indices,
                purpose=Purpose.EVALUATION_MINIBATCH,
                augment=rules.augment(0, indices),
            )
        block = torch.arange(min(test, _TEST_BLOCK), device=META)
        count_correct(tester, weights, buffers, unseen.batch(block, dtype), unseen.labels[block])
        return ledger.footprint


class _Enough(Exception):
    """The next batch holds what the last did."""


def _replay(config: RunConfig, classes: int) -> Replay | None:
    method = config.method
    if config.evaluation.protocol != "own" or not isinstance(method, UnrolledConfig):
        return None
    shape, each = (method.inner_steps, method.batch(classes, config.ipc)), (config.runs, method.inner_steps)
    return Replay(
        rates=torch.empty(each, device=META),
        order=torch.empty(shape, dtype=torch.int64, device=META),
        optimizer=method.optimizer,
        momenta=None if method.optimizer == "sgd" else torch.empty(each, device=META),
        decay=method.inner_decay,
        augmentation=method.augmentation,
        align_corners=method.align_corners,
    )


def _protocol(config: RunConfig, classes: int) -> Protocol:
    return protocol(
        config.evaluation.protocol,
        dataset=config.data.source,
        architecture=config.student.architecture,
        norm=config.student.norm,
        align_corners=True,  # holds no more or less
        replay=_replay(config, classes),
    )
