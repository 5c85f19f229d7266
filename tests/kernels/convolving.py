"""Problems of convolution tests and their textbook: one student and group after another, differentiated by torch."""

from dataclasses import dataclass

import torch
from torch.func import jvp, vjp
from torch.nn import functional


@dataclass(frozen=True)
class Problem:
    students: int
    groups: int
    images: int
    channels: int
    features: int
    height: int
    width: int
    kernel: int
    stride: int = 1
    padding: int = 0

    @property
    def settings(self):
        return {"stride": self.stride, "padding": self.padding}

    @property
    def size(self):
        return self.height, self.width

    def tensors(self, dtype=torch.float64, seed=0, bias=True):
        """All that the operators take, by name, random and whole."""
        generator = torch.Generator().manual_seed(seed)

        def random(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        lead = (self.students, self.groups)
        x = (*lead, self.images, self.channels, *self.size)
        w = (self.features, self.channels, self.kernel, self.kernel)
        sides = ((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in self.size)
        y = (*lead, self.images, self.features, *sides)
        return {
            "x": random(*x),
            "dx": random(*x),
            "weight": random(self.students, *w),
            "dweight": random(*lead, *w),
            "bias": random(self.students, self.features) if bias else None,
            "dbias": random(*lead, self.features) if bias else None,
            "gy": random(*y),
            "dgy": random(*y),
        }


def textbook(problem, t):
    """y, ẏ, gx, ġx, gw, ġw, gb, ġb in the order of their names, of all students and groups."""

    def layer(x, w, b):
        return functional.conv2d(x, w, b, problem.stride, problem.padding)

    def gradients(x, w, b, gy):
        return vjp(layer, x, w, b)[1](gy)

    zero = torch.zeros(problem.groups, problem.features, dtype=torch.float64)
    found = {name: [] for name in ("y", "dy", "gx", "dgx", "gw", "dgw", "gb", "dgb")}
    for s in range(problem.students):
        for g in range(problem.groups):
            b, db = (zero[g], zero[g]) if t["bias"] is None else (t["bias"][s], t["dbias"][s, g])
            primals, tangents = (t["x"][s, g], t["weight"][s], b), (t["dx"][s, g], t["dweight"][s, g], db)
            y, dy = jvp(layer, primals, tangents)
            values, dual = jvp(gradients, (*primals, t["gy"][s, g]), (*tangents, t["dgy"][s, g]))
            parts = (y, dy, values[0], dual[0], values[1], dual[1], values[2], dual[2])
            for name, part in zip(found, parts, strict=True):
                found[name].append(part)
    lead = (problem.students, problem.groups)
    return {name: torch.stack(parts).unflatten(0, lead) for name, parts in found.items()}


# name: students, groups, images, channels, features, height, width, kernel, stride, padding
TINY = {
    "pixel": Problem(1, 1, 1, 1, 1, 1, 1, 1),
    "grey": Problem(2, 3, 2, 1, 5, 6, 7, 3, 1, 1),
    "colour, stride 2": Problem(2, 1, 3, 3, 7, 7, 6, 3, 2, 1),
    "five taps": Problem(1, 2, 2, 5, 3, 6, 5, 5, 1, 2),
    "more padding than taps": Problem(1, 2, 1, 2, 3, 3, 4, 3, 1, 4),
    "one tap, stride 2": Problem(2, 2, 2, 4, 3, 5, 4, 1, 2, 0),
    "five taps, stride 2": Problem(1, 1, 2, 2, 3, 9, 8, 5, 2, 1),
    "rows that no kernel meets": Problem(1, 1, 1, 2, 2, 6, 6, 1, 3, 0),
}
# channels in whole blocks of the contracted axis, where a kernel takes one tap a step
BLOCKED = {
    "blocks": Problem(1, 2, 1, 16, 17, 4, 5, 3, 1, 1),
    "blocks, stride 2": Problem(1, 2, 1, 32, 16, 5, 4, 3, 2, 1),
    "blocks both ways": Problem(2, 1, 1, 16, 32, 3, 3, 3, 2, 0),
}
EMPTY = {
    "no images": Problem(2, 2, 0, 3, 4, 5, 5, 3, 1, 1),
    "no groups": Problem(2, 0, 3, 3, 4, 5, 5, 3, 1, 1),
    "no students": Problem(0, 2, 3, 3, 4, 5, 5, 3, 1, 1),
}
