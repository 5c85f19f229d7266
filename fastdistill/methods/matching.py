"""Gradient matching (DC, Zhao et al. 2021; DSA, Zhao and Bilen 2021).

For every student and group (a class, or all classes pooled) the gradient of the synthetic images is pulled towards
that of real ones. With ``v = ∂D(g_syn, g_real)/∂g_syn`` the image gradient is ``∂D/∂x = K v``: one value pass over the
real images, one over the synthetic ones, and one forward-over-reverse pass over the synthetic ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdistill.augmentation import dsa
from fastdistill.derivatives.functional import Buffers, Functional
from fastdistill.derivatives.locate import first_nonfinite
from fastdistill.draws import Purpose
from fastdistill.method_configs import MatchingConfig
from fastdistill.methods.outer_gradient import OuterGradient, pulled
from fastdistill.methods.primitives import Primitives
from fastdistill.methods.siamese import Siamese
from fastdistill.phases import DATA, MATCH, REAL_GRADIENTS, SECOND_ORDER, SYNTHETIC_GRADIENT, TRAINING, phase
from fastdistill.students.ensemble import Ensemble, Students
from fastdistill.students.training import Training, image_fetch, train_students
from fastdistill_kernels import RowTable, match

_NORM_BATCH = 16  # real images per class that set a batch-norm student's statistics before it is matched


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images and labels of every (student, class) pair.

    Attributes:
        images: ``[S, C, n, D, H, W]``, or ``[C, n, D, H, W]`` shared by all students.
        labels: ``[S, C, n]`` or ``[C, n]`` (int64), or soft rows with a last axis ``C``.
    """

    images: Tensor
    labels: Tensor

    def pooled(self) -> Batch:
        """All classes as one group."""
        images, labels = self.images, self.labels
        axis = images.ndim - 5
        label_axis = labels.ndim - (3 if labels.is_floating_point() else 2)
        return Batch(
            images=images.flatten(axis, axis + 1).unsqueeze(axis),
            labels=labels.flatten(label_axis, label_axis + 1).unsqueeze(label_axis),
        )


@dataclass(frozen=True, kw_only=True)
class Matching:
    """What is matched.

    Attributes:
        distance: one of ``fastdistill_kernels.DISTANCES``.
        table: the rows of the student's tensors that take part.
        per_class: match class by class (``G = C``) rather than pooled (``G = 1``).
    """

    distance: str
    table: RowTable
    per_class: bool = True


def matching_cotangent(
    real_primitive: Functional,
    synthetic_primitive: Functional,
    weights: Tensor,
    buffers: Buffers,
    real: Batch,
    synthetic: Batch,
    matching: Matching,
) -> tuple[Tensor, Tensor]:
    """Matching loss of every student and its derivative in that student's synthetic images.

    Args:
        real_primitive: the student's derivative, planned for the real batch.
        synthetic_primitive: the same for the synthetic batch.
        weights: ``[S, P]``.
        buffers: name to ``[S, ...]``, frozen for the match.
        real: real images of every (student, class) pair, ``B`` each.
        synthetic: synthetic images as the student sees them, ``M`` each.
        matching: what is matched.

    Returns:
        The loss ``[S]``, summed over groups, and the cotangent ``[S, C, M, D, H, W]`` of each student's own loss.
    """
    shape = synthetic.images.shape[-5:]
    if not matching.per_class:
        real, synthetic = real.pooled(), synthetic.pooled()
    with phase(REAL_GRADIENTS):
        target = real_primitive.value_and_gradient(weights, buffers, real.images, real.labels).gradient
    with phase(SYNTHETIC_GRADIENT):
        gradient = synthetic_primitive.value_and_gradient(weights, buffers, synthetic.images, synthetic.labels).gradient
    with phase(MATCH):
        distance, vector = match(gradient, target, matching.table, matching.distance)
    with phase(SECOND_ORDER):
        products = synthetic_primitive.products(
            weights, buffers, synthetic.images, synthetic.labels, vector, wanted=("images",)
        )
    assert products.images is not None
    return distance.sum(1), products.images.reshape(weights.shape[0], *shape)


Sample = Callable[[Purpose, int, Tensor, int], Batch]


class GradientMatching:
    """The method for one student architecture: draws students, gives the images' gradient, trains students between.

    Args:
        config: the recipe.
        ensemble: draws fresh students.
        primitives: the student's derivative.
        sample: ``(purpose, step, students, B)`` to that many real images of every (student, class) pair.
        labels: synthetic labels ``[C, M]``.
        runs: ``R``; student ``k`` belongs to run ``k // S``.
        students: ``S``.
        chunk: most students whose gradients are in memory at once.
        seed: the run's seed.
    """

    def __init__(
        self,
        config: MatchingConfig,
        ensemble: Ensemble,
        primitives: Primitives,
        sample: Sample,
        labels: Tensor,
        *,
        runs: int,
        students: int,
        chunk: int,
        seed: int,
    ) -> None:
        layout = primitives.real.layout
        table = RowTable.build(layout.shapes, layout.offsets, layout.size, config.distance, config.tensors or None)
        self.matching = Matching(distance=config.distance, table=table, per_class=config.per_class)
        self.strategy = dsa.Strategy.parse(config.augmentation, align_corners=config.align_corners)
        self._config, self._ensemble, self._primitives, self._sample = config, ensemble, primitives, sample
        self._labels, self._seed, self._chunk, self._per_run = labels, seed, chunk, students
        self._siamese = Siamese(self.strategy, classes=labels.shape[0], per_run=students, seed=seed)
        self._indices = torch.arange(runs * students, device=labels.device)

    def fresh(self, step: int) -> Students:
        """The students that begin at a step."""
        return self._ensemble.draw(step, self._indices)

    def prepare(self, learned: Mapping[str, Tensor], students: Students, step: int) -> Students:
        """Shows batch-norm students 16 real images per class, which updates their statistics; others are unchanged.

        Done before every match, since training on the synthetic images has moved the statistics to those.
        """
        if not students.buffers:
            return students
        seen: list[dict[str, Tensor]] = []
        for start in range(0, len(students.indices), self._chunk):
            part = students.some(slice(start, start + self._chunk))
            with phase(DATA):
                batch = self._sample(Purpose.NORM_STATISTICS, step, part.indices, _NORM_BATCH).pooled()
            with phase(REAL_GRADIENTS):
                seen.append(
                    self._primitives.training.value_and_gradient(
                        part.weights, part.buffers, batch.images, batch.labels, training=True
                    ).buffers
                )
        buffers = {name: torch.cat([part[name] for part in seen]) for name in students.buffers}
        return Students(indices=students.indices, weights=students.weights, buffers=buffers)

    def gradient(self, learned: Mapping[str, Tensor], students: Students, step: int) -> OuterGradient:
        """Gradient of every run's mean matching loss in its images.

        Args:
            learned: ``images``, ``φ [R, C, M, D, H, W]``.
            students: the students of all runs, ``[R·S]``.
            step: the outer step, which keys the real batches and augmentations.
        """
        images = learned["images"]

        def matched(part: Students, start: int) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
            draw = self._siamese.draw(step, part.indices)
            shown, pull = self._siamese.synthetic(images, start, len(part.indices), draw)
            loss, cotangent = matching_cotangent(
                self._primitives.real,
                self._primitives.synthetic,
                part.weights,
                part.buffers,
                self._real(part.indices, step, draw),
                Batch(images=shown, labels=self._labels),
                self.matching,
            )
            return loss, cotangent, pull

        return pulled(images, students, self._chunk, self._per_run, matched)

    def _real(self, indices: Tensor, step: int, draw: dsa.Draw | None) -> Batch:
        with phase(DATA):
            real = self._sample(Purpose.REAL_BATCH, step, indices, self._config.real_batch)
        return Batch(images=self._siamese.seen(real.images, draw), labels=real.labels)

    def locate(self, learned: Mapping[str, Tensor], students: Students, step: int, student: int) -> str:
        """Where a student of ``students``, as it began a step, stopped being finite in it; see `first_nonfinite`."""
        own = self.prepare(learned, students.some(slice(student, student + 1)), step)
        draw = self._siamese.draw(step, own.indices)
        run = student // self._per_run
        synthetic = self._siamese.seen(learned["images"][run : run + 1], draw)
        real = self._real(own.indices, step, draw)
        return first_nonfinite(
            self._ensemble.module,
            own.weights[0],
            {name: tensor[0] for name, tensor in own.buffers.items()},
            {
                "real images": (real.images.flatten(0, 2), real.labels.flatten()),
                "synthetic images": (synthetic.flatten(0, 2), self._labels.flatten()),
            },
        )

    def advance(self, learned: Mapping[str, Tensor], students: Students, step: int) -> Students | None:
        """Trains the students on the images after an update; None where new students begin at the next step."""
        config = self._config
        if (step + 1) % config.outer_loop == 0:
            return None
        images = learned["images"]
        flat, labels = images.flatten(1, 2), self._labels.flatten()
        own = flat[0] if images.shape[0] == 1 else flat.repeat_interleave(self._per_run, dim=0)
        indices = students.indices

        def augment(batch: Tensor, draw_step: int) -> Tensor:
            draw = dsa.draw_per_image(
                self.strategy,
                seed=self._seed,
                step=draw_step,
                students=indices,
                images=batch.shape[-4],
                purpose=Purpose.TRAINING_AUGMENTATION,
            )
            return dsa.augment(batch, self.strategy, draw)

        with phase(TRAINING):
            weights, buffers = train_students(
                self._primitives.training,
                students.weights,
                students.buffers,
                image_fetch(own, labels),
                len(labels),
                Training(
                    epochs=config.inner_loop,
                    learning_rate=config.inner_learning_rate,
                    momentum=config.inner_momentum,
                    batch=config.inner_batch,
                ),
                seed=self._seed,
                students=indices,
                first_epoch=step * config.inner_loop,
                augment=augment if self.strategy.operations else None,
            )
        return Students(indices=indices, weights=weights, buffers=buffers)
