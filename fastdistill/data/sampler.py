"""Keyed sampling of real images, class by class, for all students at once.

A draw is the beginning of a Fisher-Yates shuffle of the class. The shuffle's steps depend on one another, but only
through positions hit more than once, which one sort finds; the chains are then followed for all steps together by
pointer doubling. The cost is that of B draws and a sort of B numbers per student and class, whatever the class's size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdistill.data.class_index import ClassIndex
from fastdistill.draws import Purpose, uniform


def effective_batch(class_sizes: Sequence[int], batch: int) -> int:
    """Images per class that every class can give: `batch`, or the size of the smallest class if that is less.

    The published code takes ``min(B, size)`` of each class by itself; equal batches keep all classes one tensor, and
    on every published data set the two agree.

    Args:
        class_sizes: images of each class, ``C`` values.
        batch: images wanted, ``B``.

    Raises:
        ValueError: if `batch` is not positive, or a class is empty.
    """
    if batch < 1 or not class_sizes or min(class_sizes) < 1:
        raise ValueError(
            f"expected a batch B >= 1 and an image in every class, got B = {batch} and class sizes "
            f"{list(class_sizes)}: leave more images for training"
        )
    return min(batch, *class_sizes)


def distinct_positions(draws: Tensor, sizes: Tensor) -> Tensor:
    """Turns uniform numbers into distinct positions: the first B entries of a Fisher-Yates shuffle of each row.

    Step i swaps positions i and ``j_i = i + floor(u_i (size - i))`` of ``0 .. size - 1`` and yields what came to i.
    Every ordered choice is equally likely up to the draws' 24 bits, ``size / 2^24``.

    Args:
        draws: ``u``, uniform numbers in ``[0, 1)``, float ``[..., B]``.
        sizes: numbers to choose from, int64 broadcastable to ``[...]``, each at least B.

    Returns:
        int64 ``[..., B]``, distinct along the last axis, each in ``0 .. size - 1``.
    """
    batch = draws.shape[-1]
    step = torch.arange(batch, device=draws.device)
    # float64: in float32 the product could round up to the size itself
    target = step + (draws.double() * (sizes.unsqueeze(-1) - step)).long()
    ordered = (target * batch + step).sort(-1).values  # steps by (target, step), as one number

    def last_hit(position: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each step's `position` was an earlier step's target, and the last such step."""
        slot = torch.searchsorted(ordered, position * batch + step) - 1
        nearest = ordered.gather(-1, slot.clamp_min(0))
        return (slot >= 0) & (nearest // batch == position), nearest % batch

    # the last earlier step to hit position i left there what it held itself: follow these chains back to their start
    hit, earlier = last_hit(step.expand_as(target))
    held = torch.where(hit, earlier, step)
    for _ in range((batch - 1).bit_length()):
        held = held.gather(-1, held)
    hit, earlier = last_hit(target)
    return torch.where(hit, held.gather(-1, earlier), target)


def class_batches(
    index: ClassIndex,
    *,
    seed: int,
    step: int,
    students: Tensor,
    batch: int,
    purpose: Purpose = Purpose.REAL_BATCH,
) -> Tensor:
    """Draws `batch` images of every class for every student, without replacement, in random order.

    A student's draw is a pure function of (seed, purpose, step, student) and of the data set: it does not depend on
    which other students are drawn for. With ``purpose=Purpose.RANDOM_REAL`` it picks the images of the random-real
    baseline, with ``Purpose.PIXELS`` those a synthetic set starts from.

    Args:
        index: the data set's classes, `ImageStore.class_index`.
        seed: the run's seed.
        step: outer step.
        students: global student indices, int64 ``[S]``, on the index's device.
        batch: images per class, ``B``; at most the size of the smallest class, see `effective_batch`.
        purpose: stream of the draws.

    Returns:
        Image indices, int64 ``[S, C, B]``.

    Raises:
        ValueError: if a class has fewer than `batch` images.
    """
    if effective_batch(index.sizes, batch) < batch:
        smallest = min(index.sizes)
        raise ValueError(
            f"expected the {batch} images asked for in every class, got {smallest} in class "
            f"{index.sizes.index(smallest)}: ask for effective_batch(class_sizes, {batch}) images"
        )
    num_classes = len(index.sizes)
    draws = uniform(seed, purpose, step, students, num_classes * batch).view(-1, num_classes, batch)
    return index.order[index.starts.unsqueeze(-1) + distinct_positions(draws, index.counts)]
