"""The GTN student and its training written out in plain torch, as oracle for all that runs or differentiates it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the student small: the published widths would only make the same layers slow."""
    monkeypatch.setattr("fastdistill.students.gtn.CHANNELS", (4, 5))
    monkeypatch.setattr("fastdistill.students.gtn.HIDDEN", 6)


def forward(
    p: dict[str, Tensor], images: Tensor, means: list[Tensor] | None = None, *, constant: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Logits and the batch's three means.

    Args:
        p: parameters by name.
        images: ``[n, D, H, W]``.
        means: to take away in place of the batch's.
        constant: take the batch's means away as constants.
    """
    found: list[Tensor] = []

    def scale(name: str) -> Tensor:
        return p[f"{name}.gain"] / p[f"{name}.weight"].flatten(1).square().sum(1).sqrt()

    def normed(bias: str, maps: Tensor) -> Tensor:
        shape = [1, -1] + [1] * (maps.ndim - 2)
        mean = maps.sum([0, *range(2, maps.ndim)]) / (maps.numel() / maps.shape[1])
        taken = mean.detach() if constant else mean
        taken = taken if means is None else means[len(found)]
        found.append(mean)
        centred = maps - taken.view(shape) + p[bias].view(shape)
        return torch.where(centred > 0, centred, 0.1 * centred)

    def block(number: int, maps: Tensor) -> Tensor:
        maps = F.conv2d(maps, p[f"body.{number}.weight"], padding=1) * scale(f"body.{number}").view(1, -1, 1, 1)
        return normed(f"body.{number + 2}.bias", F.max_pool2d(maps, 3, stride=2, padding=1))

    maps = block(4, block(0, images))
    hidden = normed("head.1.bias", maps.flatten(1) @ p["head.0.weight"].T * scale("head.0"))
    logits = (hidden @ p["classifier.weight"].T + p["classifier.bias"]) * scale("classifier")
    return logits, found


def unrolled_loss(
    p: dict[str, Tensor],
    batches: list[tuple[Tensor, Tensor]],
    rates: Tensor,
    momenta: Tensor,
    real: tuple[Tensor, Tensor],
    every: int = 0,
    *,
    constant: bool = False,
) -> Tensor:
    """The mean of outer losses, differentiable in batches, rates and momenta, by a graph of the whole training.

    Args:
        p: initial weights of one student.
        batches: images ``[n, D, H, W]`` and labels ``[n]`` or soft rows ``[n, C]`` of each step.
        rates: ``[T]``.
        momenta: ``[T]``.
        real: images and labels of every outer loss.
        every: steps between further outer losses, beside that of the last weights; 0 for none.
        constant: take the means of the batch before an outer loss for constants in that loss.
    """
    velocity: list[Tensor] = []
    losses = []
    for number, (images, labels) in enumerate(batches):
        values = [value if value.requires_grad else value.requires_grad_() for value in p.values()]
        logits, means = forward(p, images)
        log_probability = logits.log_softmax(1)
        rows = labels if labels.is_floating_point() else F.one_hot(labels, logits.shape[1])
        loss = -(rows * log_probability).sum() / len(images)
        gradients = torch.autograd.grad(loss, values, create_graph=True)
        if velocity:
            gradients = [momenta[number] * old + new for old, new in zip(velocity, gradients, strict=True)]
        velocity = list(gradients)
        p = {name: value - rates[number] * v for (name, value), v in zip(p.items(), velocity, strict=True)}
        if number + 1 == len(batches) or (every and (number + 1) % every == 0):
            means = [mean.detach() for mean in means] if constant else means
            losses.append(F.cross_entropy(forward(p, real[0], means)[0], real[1]))
    return torch.stack(losses).mean()
