"""A method whose images come from a generator: any method, since decoding stays outside of it.

The method gives the derivative of its loss in the images as it always does; one reverse-mode pull-back takes it to the
generator's parameters and noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.func import vjp

from fastdistill.loop.outer import Method, Warns
from fastdistill.methods.outer_gradient import OuterGradient
from fastdistill.phases import GENERATOR, phase
from fastdistill.students.ensemble import Students
from fastdistill.synthetic.generator import NOISE, PREFIX, Generator

Learned = Mapping[str, Tensor]


class Shown(Mapping[str, Tensor]):
    """What a method learns from: ``images [R, C, M, D, H, W]`` in place of what the generator makes them from.

    They are made when they are asked for, since many a method trains no students between its gradients.

    Args:
        generator: makes them.
        learned: everything that is learned.
        step: keys fresh noise.
    """

    def __init__(self, generator: Generator, learned: Learned, step: int) -> None:
        self._generator, self._step = generator, step
        self._own, self._others = _split(learned)

    @cached_property
    def _images(self) -> Tensor:
        with phase(GENERATOR):
            return self._generator.images(self._own, self._step)

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of a name."""
        return self._images if name == "images" else self._others[name]

    def __iter__(self) -> Iterator[str]:
        """The names, the images first."""
        return iter(("images", *self._others))

    def __len__(self) -> int:
        """How many."""
        return 1 + len(self._others)


def belongs(name: str) -> bool:
    """Whether something that is learned is the generator's."""
    return name == NOISE or name.startswith(PREFIX)


def _split(learned: Learned) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The generator's part of what is learned, and the rest."""
    own = {name: value for name, value in learned.items() if belongs(name)}
    return own, {name: value for name, value in learned.items() if name not in own}


def images_and_pull(
    generator: Generator, learned: Learned, step: int
) -> tuple[Tensor, Callable[[Tensor], dict[str, Tensor]]]:
    """The images of an outer step, and what takes a derivative in them to those in the generator's part.

    Several blocks are generated a second time for it, one by one: all at once would hold the activations of all.

    Args:
        generator: makes the images.
        learned: its part of what is learned.
        step: keys fresh noise.

    Returns:
        ``[R, C, M, D, H, W]``, and a map from a tensor of that shape to derivatives by name.
    """
    if generator.config.blocks == 1:
        whole = vjp(lambda learned: generator.images(learned, step), dict(learned))
        return whole[0], lambda cotangent: whole[1](cotangent)[0]
    return generator.images(learned, step), partial(_pulled, generator, learned, step)


def _pulled(generator: Generator, learned: Learned, step: int, cotangent: Tensor) -> dict[str, Tensor]:
    """Derivatives in the generator's part from one in its images ``[R, C, M, D, H, W]``, block by block."""
    parameters, noise = generator.inputs(learned, step)
    found = {name: torch.zeros_like(value) for name, value in parameters.items()}
    of_noise = torch.empty_like(noise)
    each = noise.shape[2] // generator.config.blocks
    for run in range(generator.runs):
        own = {name: value[run] for name, value in parameters.items()}
        for start in range(0, noise.shape[2], each):
            part = slice(start, start + each)
            pull = vjp(generator.block, own, noise[run, :, part])[1]
            of_parameters, of_noise[run, :, part] = pull(cotangent[run, :, part])
            for name, gradient in of_parameters.items():
                found[name][run] += gradient
    named = {f"{PREFIX}{name}": gradient for name, gradient in found.items()} | {NOISE: of_noise}
    return {name: named[name] for name in learned}


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A method on the images of a generator.

    Attributes:
        method: as it is for pixels.
        generator: makes the images.
    """

    method: Method
    generator: Generator

    def fresh(self, step: int) -> Students:
        """See `Method`."""
        return self.method.fresh(step)

    def prepare(self, learned: Learned, students: Students, step: int) -> Students:
        """See `Method`; students see the images that the gradient of this step is taken at."""
        return self.method.prepare(Shown(self.generator, learned, step), students, step)

    def gradient(self, learned: Learned, students: Students, step: int) -> OuterGradient:
        """See `Method`; gradients in the generator's parameters and noise, and in what else is learned."""
        own, others = _split(learned)
        with phase(GENERATOR):
            images, pull = images_and_pull(self.generator, own, step)
        found = self.method.gradient({"images": images, **others}, students, step)
        gradients = dict(found.gradients)
        with phase(GENERATOR):
            pulled = pull(gradients.pop("images"))
        return replace(found, gradients={**pulled, **gradients})

    def advance(self, learned: Learned, students: Students, step: int) -> Students | None:
        """See `Method`."""
        return self.method.advance(Shown(self.generator, learned, step), students, step)

    def warning(self, values: Mapping[str, float]) -> str | None:
        """See `Warns`."""
        return self.method.warning(values) if isinstance(self.method, Warns) else None

    def locate(self, learned: Learned, students: Students, step: int, student: int) -> str:
        """See `Method`."""
        return self.method.locate(Shown(self.generator, learned, step), students, step, student)
