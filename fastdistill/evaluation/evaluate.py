"""Test accuracy of fresh students trained on some images, all students as one batched program."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch
from torch import Tensor, nn

from fastdistill.data.store import ImageStore
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.plan import choose_batching, compiling_pays, forward_cost
from fastdistill.derivatives.primitive import make_primitive
from fastdistill.draws import Purpose
from fastdistill.evaluation.protocols import Protocol
from fastdistill.evaluation.replay import replay_students
from fastdistill.progress import Silent
from fastdistill.students.training import Fetch, count_correct, image_fetch, train_students
from fastdistill.students.weights import initial_buffers, initial_weights

Born = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
_TEST_BLOCK = 1000  # test images normalised at once


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Accuracies of fresh students.

    Attributes:
        per_student: test accuracy of every student, a share in [0, 1].
        protocol: name of the protocol.
        epochs: epochs as the protocol counts them; 0 for the protocol ``own``.
        images: training images per student.
        seconds: wall-clock time of training and testing.
        steps: steps of the protocol ``own``; 0 for the others.
    """

    per_student: tuple[float, ...]
    protocol: str
    epochs: int
    images: int
    seconds: float
    steps: int = 0

    @property
    def mean(self) -> float:
        """Mean accuracy."""
        return fmean(self.per_student)

    @property
    def std(self) -> float:
        """Standard deviation over students (of the population, as the field's tables print it)."""
        return pstdev(self.per_student)

    @property
    def duration(self) -> str:
        """How long students trained, in words."""
        return f"{self.steps} steps of the images' own" if self.steps else f"{self.epochs} epochs"

    def __str__(self) -> str:
        return (
            f"{100 * self.mean:.2f} ± {100 * self.std:.2f} % over {len(self.per_student)} students "
            f"(protocol {self.protocol}, {self.duration}, {self.images} images)"
        )


def store_fetch(store: ImageStore, dtype: torch.dtype) -> Fetch:
    """Mini-batches of real images, shared by the students but drawn in each one's own order."""

    def fetch(indices: Tensor | None) -> tuple[Tensor, Tensor]:
        if indices is None:
            indices = torch.arange(len(store), device=store.device)
        return store.batch(indices, dtype), store.labels[indices]

    return fetch


def evaluate_students(
    module: nn.Module,
    fetch: Fetch,
    count: int,
    test: ImageStore,
    protocol: Protocol,
    *,
    students: Tensor,
    seed: int,
    distribution: str = "default",
    born: Born | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Silent | None = None,
    title: str = "testing",
    compile: str = "auto",
) -> Evaluation:
    """Trains fresh students by a protocol and tests them.

    Args:
        module: the architecture to evaluate.
        fetch: the training images, from `students.training.image_fetch` or `store_fetch`.
        count: number of training images ``N``.
        test: test images, with the normalisation of the training ones.
        protocol: how students are trained; steps and rates that are not all the same are ``[S, …]``, see
            `Protocol.spread`.
        students: global indices ``[S]`` of the evaluation students; their weights, shuffles and augmentation follow.
        seed: of the draws.
        distribution: weight distribution of the fresh students.
        born: gives the students' weights ``[S, P]`` and buffers instead, where images are for certain ones.
        dtype: float32 or float64.
        progress: what is said meanwhile.
        title: of the stage that is said.
        compile: always, never, or auto, where training is long enough to pay for it.

    Raises:
        ValueError: without students or test images.
    """
    if not len(students) or not len(test):
        raise ValueError(
            f"expected at least one student and one test image, got {len(students)} and {len(test)}: raise students or "
            "give test images"
        )
    begin = time.perf_counter()
    cost = forward_cost(module, test.shape)

    replay, epochs = protocol.replay, protocol.training.epochs
    seen = count * epochs if replay is None else replay.steps * replay.order.shape[1]
    each = {"trained": seen * len(students), "tested": len(test) * len(students)}
    compiled = compile == "always" or (compile == "auto" and compiling_pays(cost, test.device, **each))

    def planned(images: int) -> Functional:
        batching = choose_batching(
            cost, test.device, students=len(students), groups=1, images=images, compiled=compiled
        )
        return make_primitive(module, batching)

    if born is not None:
        weights, buffers = born(students)
    else:
        weights = initial_weights(
            module, distribution, seed=seed, step=0, students=students, purpose=Purpose.EVALUATION_WEIGHTS
        ).to(dtype)
        buffers = initial_buffers(module, len(students), dtype=dtype, device=test.device)
    with (progress or Silent()).stage(title, epochs if replay is None else replay.steps) as advance:
        if replay is not None:
            weights, buffers = replay_students(
                planned(replay.order.shape[1]),
                weights,
                buffers,
                fetch,
                replay,
                augment=protocol.augment(seed, students),
                progress=lambda step: advance(step, ""),
            )
        else:
            weights, buffers = train_students(
                planned(min(count, protocol.training.batch)),
                weights,
                buffers,
                fetch,
                count,
                protocol.training,
                seed=seed,
                students=students,
                purpose=Purpose.EVALUATION_MINIBATCH,
                augment=protocol.augment(seed, students),
                rates=protocol.rates,
                progress=lambda epoch: advance(epoch, ""),
            )
    tester = planned(_TEST_BLOCK)
    correct = torch.zeros(len(students), dtype=torch.int64, device=test.device)
    for block in torch.arange(len(test), device=test.device).split(_TEST_BLOCK):
        correct += count_correct(tester, weights, buffers, test.batch(block, dtype), test.labels[block])
    return Evaluation(
        per_student=tuple((correct.double() / len(test)).tolist()),
        protocol=protocol.name,
        epochs=protocol.epochs,
        images=count,
        seconds=time.perf_counter() - begin,
        steps=protocol.steps,
    )


def evaluate_images(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    test: ImageStore,
    protocol: Protocol,
    *,
    students: int,
    first_student: int = 0,
    seed: int,
    distribution: str = "default",
    born: Born | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Silent | None = None,
    title: str = "testing",
    compile: str = "auto",
) -> Evaluation:
    """Evaluates images by ``students`` fresh students for every run of them.

    Args:
        module: the architecture to evaluate.
        images: ``[R, N, D, H, W]``, normalised; run ``r`` is seen by the students ``r·S`` to ``r·S + S - 1``.
        labels: classes ``[N]`` or soft rows ``[N, C]``, the same in every run, or ``[R, N, C]``, every run's own.
        test: test images, with the normalisation of the training ones.
        protocol: how students are trained; what runs have of their own is of as many runs as the images.
        students: ``S``.
        first_student: added to the students' indices, to have others than those of another evaluation.
        seed: of the draws.
        distribution: weight distribution of the fresh students.
        born: see `evaluate_students`.
        dtype: float32 or float64.
        progress: what is said meanwhile.
        title: of the stage that is said.
        compile: see `evaluate_students`.

    Raises:
        ValueError: without students or test images, or for labels or learning rates of another number of runs.
    """
    runs = images.shape[0]
    if labels.ndim == 3 and labels.shape[0] != runs:
        raise ValueError(
            f"expected soft labels of {runs} runs, as the images are of, got those of {labels.shape[0]}: give every "
            "run its own, or all the same [N, C]"
        )

    if protocol.rates is not None and protocol.rates.shape != (runs,):
        raise ValueError(
            f"expected learning rates of {runs} runs, as the images are of, got {tuple(protocol.rates.shape)}: give "
            "every run one, or none"
        )

    def spread(tensor: Tensor) -> Tensor:
        """A student's own of what a run has; of one run, shared."""
        return tensor[0] if runs == 1 else tensor.repeat_interleave(max(students, 0), dim=0)

    labels = labels.to(dtype) if labels.is_floating_point() else labels
    return evaluate_students(
        module,
        image_fetch(spread(images.to(dtype)), spread(labels) if labels.ndim == 3 else labels),
        images.shape[1],
        test,
        protocol.spread(max(students, 0)),
        students=first_student + torch.arange(runs * max(students, 0), device=test.device),
        seed=seed,
        distribution=distribution,
        born=born,
        dtype=dtype,
        progress=progress,
        title=title,
        compile=compile,
    )
