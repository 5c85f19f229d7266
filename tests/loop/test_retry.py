import gc
import weakref
from functools import cache
from math import log2

import pytest
import torch

from fastdistill.config import RunConfig, StudentConfig
from fastdistill.failures import RunFailed
from fastdistill.loop.plan import halves, make_plan
from fastdistill.loop.retry import halved, is_out_of_memory, retrying
from fastdistill.method_configs import matching_recipe


def config(**changes):
    return RunConfig(device="cpu", student=StudentConfig(width=changes.pop("width", 128)), **changes)


@cache
def digits_plan(students):
    settings = config(width=16, students=students, method=matching_recipe("dc", 1, real_batch=32))
    return make_plan(settings, (1, 8, 8), 10)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_lack_of_memory_is_recognised(error, expected):
    assert is_out_of_memory(error) is expected


def test_the_real_allocators_error_is_recognised():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**58)
    assert is_out_of_memory(error.value)


def test_a_plan_is_halved_until_nothing_is_left():
    plan = digits_plan(12)
    chunks = [plan.chunk]
    while (plan := halved(plan)) is not None:
        chunks.append(plan.chunk)
        last = plan
    assert chunks[:5] == [12, 6, 3, 2, 1]
    assert {last.real.piece, last.synthetic.piece, last.training.piece, last.real.students} == {1}
    assert len(chunks) <= 5 + 9  # then pieces of at most 2^8 images are halved


@pytest.mark.parametrize("students", [1, 8, 12, 17])
@pytest.mark.parametrize("fitting", [1, 3, 9, 100])
def test_running_out_of_memory_ends_at_the_largest_half_that_fits(students, fitting):
    tried, said = [], []

    def attempt(plan):
        tried.append(plan.chunk)
        if plan.chunk > fitting:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return "done"

    plan, outcome = retrying(digits_plan(students), attempt, said.append)
    expected = [chunk for chunk in halves(students) if chunk > fitting]
    assert outcome == "done"
    assert tried == [*expected, plan.chunk]
    assert plan.chunk == max(chunk for chunk in halves(students) if chunk <= fitting)
    assert len(expected) <= log2(students) + 1
    assert len(said) == len(expected)
    assert not said or f"chunks of {plan.chunk} students" in said[-1]


def test_a_failed_attempt_leaves_nothing_behind():
    held = []

    def attempt(plan):
        block = torch.ones(1000)
        held.append(weakref.ref(block.untyped_storage()))
        if len(held) < 3:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )

    gc.disable()
    try:
        retrying(
            digits_plan(8), attempt, lambda text: [found() for found in held] == [None] * len(held) or pytest.fail()
        )
    finally:
        gc.enable()
    assert len(held) == 3


def test_other_failures_and_the_last_one_go_through():
    def wrong(plan):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    def full(plan):
        tried.append(plan)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    tried = []
    with pytest.raises(RuntimeError, match="mat1"):
        retrying(digits_plan(8), wrong, tried.append)
    assert tried == []
    with pytest.raises(RunFailed, match="expected enough memory for one image"):
        retrying(digits_plan(2), full, lambda text: None)
    assert halved(tried[-1]) is None
