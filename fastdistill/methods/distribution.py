"""Distribution matching (DM; Zhao and Bilen, "Dataset condensation with distribution matching", WACV 2023).

The mean features ``μ`` of the synthetic images of every class are pulled towards those of real ones, in random networks
that nobody trains: ``L = Σ_c ‖μ_c(real) − μ_c(synthetic)‖²`` (equation 4), whose derivative in the images is plain
reverse mode along ``∂L/∂μ(synthetic) = 2 (μ(synthetic) − μ(real))``. ``S`` networks give it at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdistill.augmentation import dsa
from fastdistill.derivatives.embedding import Embedding
from fastdistill.derivatives.functional import Buffers
from fastdistill.derivatives.locate import first_nonfinite
from fastdistill.draws import Purpose
from fastdistill.method_configs import DistributionConfig
from fastdistill.methods.matching import Sample
from fastdistill.methods.outer_gradient import OuterGradient, pulled
from fastdistill.methods.siamese import Siamese
from fastdistill.phases import DATA, MATCH, REAL_FEATURES, SYNTHETIC_FEATURES, SYNTHETIC_GRADIENT, phase
from fastdistill.students.ensemble import Ensemble, Students


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The features of one architecture, each planned for its own batch: ``real`` and ``synthetic`` images."""

    real: Embedding
    synthetic: Embedding


def distribution_cotangent(
    embeddings: Embeddings, weights: Tensor, buffers: Buffers, real: Tensor, synthetic: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss of every student and its derivative in that student's synthetic images.

    Args:
        embeddings: the features.
        weights: ``[S, P]``.
        buffers: name to ``[S, ...]``; unchanged, since statistics are those of the batch.
        real: ``[S, C, B, D, H, W]`` or, shared, ``[C, B, D, H, W]``.
        synthetic: as the students see them, ``[S, C, M, D, H, W]`` or ``[C, M, D, H, W]``.

    Returns:
        The loss ``[S]``, summed over classes, and the cotangent ``[S, C, M, D, H, W]`` of each student's own loss.
    """
    with phase(REAL_FEATURES):
        target = embeddings.real.means(weights, buffers, real)
    with phase(SYNTHETIC_FEATURES):
        apart = embeddings.synthetic.means(weights, buffers, synthetic)
    with phase(MATCH):
        apart = apart - target
        loss, vector = apart.square().sum((1, 2)), 2 * apart
    with phase(SYNTHETIC_GRADIENT):
        return loss, embeddings.synthetic.pull(weights, buffers, synthetic, vector)


class DistributionMatching:
    """The method for one architecture.

    Args:
        config: the recipe.
        ensemble: draws networks.
        embeddings: their features.
        sample: ``(purpose, step, students, B)`` to that many real images of every (student, class) pair.
        labels: synthetic labels ``[C, M]``.
        runs: ``R``; network ``k`` belongs to run ``k // S``.
        students: ``S``.
        chunk: most networks in memory at once.
        seed: the run's seed.
    """

    def __init__(
        self,
        config: DistributionConfig,
        ensemble: Ensemble,
        embeddings: Embeddings,
        sample: Sample,
        labels: Tensor,
        *,
        runs: int,
        students: int,
        chunk: int,
        seed: int,
    ) -> None:
        self.strategy = dsa.Strategy.parse(config.augmentation, align_corners=config.align_corners)
        self._siamese = Siamese(self.strategy, classes=labels.shape[0], per_run=students, seed=seed)
        self._config, self._ensemble, self._embeddings, self._sample = config, ensemble, embeddings, sample
        self._labels, self._per_run, self._chunk = labels, students, chunk
        self._indices = torch.arange(runs * students, device=labels.device)

    def fresh(self, step: int) -> Students:
        """The networks of a step."""
        return self._ensemble.draw(step, self._indices)

    def prepare(self, learned: Mapping[str, Tensor], students: Students, step: int) -> Students:
        """The networks as they are."""
        return students

    def advance(self, learned: Mapping[str, Tensor], students: Students, step: int) -> Students | None:
        """None: every step has networks of its own."""
        return None

    def gradient(self, learned: Mapping[str, Tensor], students: Students, step: int) -> OuterGradient:
        """Gradient of every run's mean loss in its images.

        Args:
            learned: ``images``, ``φ [R, C, M, D, H, W]``.
            students: the networks of all runs, ``[R·S]``.
            step: the outer step, which keys the real batches and augmentations.
        """
        images = learned["images"]

        def matched(part: Students, start: int) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
            draw = self._siamese.draw(step, part.indices)
            shown, pull = self._siamese.synthetic(images, start, len(part.indices), draw)
            real = self._siamese.seen(self._real(part.indices, step), draw)
            return *distribution_cotangent(self._embeddings, part.weights, part.buffers, real, shown), pull

        return pulled(images, students, self._chunk, self._per_run, matched)

    def locate(self, learned: Mapping[str, Tensor], students: Students, step: int, student: int) -> str:
        """Where a network of ``students`` stopped being finite at a step; see `first_nonfinite`."""
        own = students.some(slice(student, student + 1))
        draw = self._siamese.draw(step, own.indices)
        run = student // self._per_run
        classes, real = self._labels[:, 0], self._siamese.seen(self._real(own.indices, step), draw)
        synthetic = self._siamese.seen(learned["images"][run : run + 1], draw)
        return first_nonfinite(
            self._ensemble.module,
            own.weights[0],
            {name: tensor[0] for name, tensor in own.buffers.items()},
            {
                "real images": (real.flatten(0, 2), classes.repeat_interleave(real.shape[-4])),
                "synthetic images": (synthetic.flatten(0, 2), self._labels.flatten()),
            },
        )

    def _real(self, indices: Tensor, step: int) -> Tensor:
        """Real images ``[S, C, B, D, H, W]``."""
        with phase(DATA):
            return self._sample(Purpose.REAL_BATCH, step, indices, self._config.real_batch).images
