"""Evaluation protocols: how a fresh student is trained, by name. An accuracy means something only beside its protocol.

``dc`` (Zhao et al. 2021) and ``dsa`` (Zhao and Bilen 2021) repeat the published code's schedule, quirks included: E+1
epochs are run, the learning rate falls to a tenth after epoch ⌊E/2⌋+1 counted from 0, and a new optimiser is built
there, which loses the momentum. ``default`` is ours: exactly E epochs of cosine decay, no augmentation. ``own`` is for
images that were learned with steps and rates of their own and replays these, by the optimiser and with the augmentation
that belong to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from fastdistill.augmentation import dc, dsa
from fastdistill.draws import Purpose
from fastdistill.evaluation.replay import Replay
from fastdistill.students.training import Training

PROTOCOLS = ("dc", "dsa", "default", "own")
DIGITS = ("digits", "mnist", "svhn")  # mirrored digits are other signs


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A named way to train fresh students.

    Attributes:
        name: one of ``PROTOCOLS``.
        epochs: ``E`` as papers count it; 0 for ``own``, which counts steps.
        training: what is run.
        augmentation: strategy of the augmentation, or ``none``.
        align_corners: of DSA's sampling grid.
        replay: the images' own steps and rates, run in place of ``training``; for ``own`` alone.
        rates: learning rates ``[R]`` that the images were learned with, in place of that of ``training``, whose
            schedule stays; ``[S]`` after `spread`.
    """

    name: str
    epochs: int
    training: Training
    augmentation: str
    align_corners: bool = True
    replay: Replay | None = None
    rates: Tensor | None = None

    @property
    def steps(self) -> int:
        """Steps of ``own``; 0 for protocols that count epochs."""
        return 0 if self.replay is None else self.replay.steps

    def spread(self, students: int) -> Protocol:
        """The protocol of ``students`` students for each run, where runs have steps or rates of their own."""
        return replace(
            self,
            replay=None if self.replay is None else self.replay.spread(students),
            rates=None if self.rates is None else self.rates.repeat_interleave(students),
        )

    def with_epochs(self, epochs: int) -> Protocol:
        """The same protocol over another number of epochs.

        Raises:
            ValueError: for no epochs, or for the protocol ``own``.
        """
        if self.replay is not None:
            raise ValueError(
                f"expected no epochs for the protocol own, which replays the images' own {self.steps} steps, got "
                f"{epochs}: leave epochs out or choose another protocol"
            )
        if epochs < 1:
            raise ValueError(f"expected at least one epoch, got {epochs}: raise epochs")
        return replace(self, epochs=epochs, training=_training(self.name, epochs))

    def augment(self, seed: int, students: Tensor) -> Callable[..., Tensor] | None:
        """The augmentation of ``[S, n, D, H, W]`` (or shared ``[n, D, H, W]``) images at a training step."""
        if self.augmentation == "none":
            return None
        if self.name in ("dsa", "own"):
            strategy = dsa.Strategy.parse(self.augmentation, align_corners=self.align_corners)

            def per_image(images: Tensor, step: int) -> Tensor:
                draw = dsa.draw_per_image(
                    strategy,
                    seed=seed,
                    step=step,
                    students=students,
                    images=images.shape[-4],
                    purpose=Purpose.EVALUATION_AUGMENTATION,
                )
                return dsa.augment(images, strategy, draw)

            return per_image
        operations = dc.parse_strategy(self.augmentation)

        def plain(images: Tensor, step: int) -> Tensor:
            return dc.augment(
                images.expand(len(students), *images.shape[-4:]),
                operations,
                seed=seed,
                purpose=Purpose.EVALUATION_AUGMENTATION,
                step=step,
                students=students,
            )

        return plain


def _training(name: str, epochs: int) -> Training:
    ours = Training(epochs=epochs, learning_rate=0.01, momentum=0.9, weight_decay=5e-4, batch=256, schedule="cosine")
    if name == "default":
        return ours
    return replace(ours, epochs=epochs + 1, schedule="step", decay_epoch=epochs // 2 + 2, restart=True)


def protocol(
    name: str,
    *,
    dataset: str,
    architecture: str,
    norm: str,
    align_corners: bool = True,
    replay: Replay | None = None,
    rates: Tensor | None = None,
) -> Protocol:
    """The protocol of a name for a data set and the norm of the evaluated architecture.

    Args:
        name: ``dc``, ``dsa``, ``default`` or ``own``.
        dataset: name of the data set, such as ``mnist``.
        architecture: of the evaluated student.
        norm: of the evaluated student; a convnet with batch norm gets noise and crops in ``dc``.
        align_corners: of DSA's sampling grid, as the images were distilled.
        replay: the images' own steps and rates, where they have any; ``own`` needs them, the others leave them out.
        rates: the learning rates ``[R]`` that the images were learned with, where they have any; ``own`` leaves them
            out.

    Raises:
        ValueError: for an unknown name, or ``own`` for images without steps of their own.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"expected a protocol among {', '.join(PROTOCOLS)}, got {name!r}: choose one of these")
    if name == "own":
        if replay is None:
            raise ValueError(
                "expected images with steps and rates of their own for the protocol own, got images without: choose "
                "dc, dsa or default"
            )
        return Protocol(
            name=name,
            epochs=0,
            training=Training(epochs=0),
            augmentation=replay.augmentation,
            align_corners=replay.align_corners,
            replay=replay,
        )
    epochs, augmentation = 300, "none"
    if name == "dsa":
        epochs = 1000
        flip = "" if dataset in DIGITS else "flip_"
        augmentation = f"color_crop_cutout_{flip}scale_rotate"
    elif name == "dc" and architecture == "convnet" and norm == "batch":
        epochs, augmentation = 1000, "crop_noise"
    elif name == "dc" and dataset == "mnist":
        epochs, augmentation = 1000, "crop_scale_rotate"
    return Protocol(
        name=name,
        epochs=epochs,
        training=_training(name, epochs),
        augmentation=augmentation,
        align_corners=align_corners,
        rates=rates,
    )
