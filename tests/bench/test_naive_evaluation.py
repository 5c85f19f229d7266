from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.naive.convnet import ConvNet
from bench.naive.evaluation import accuracy, decay_epoch, train_and_test


def two_classes(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with a bright stripe, upright in class 1 and level in class 0."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    images = torch.randn(n, 1, 8, 8, generator=generator)
    images[labels == 0, :, 3:5, :] += 2
    images[labels == 1, :, :, 3:5] += 2
    return images, labels


def seeded_convnet() -> ConvNet:
    net = ConvNet(1, 2, width=8, depth=2, image_size=8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return net


def test_an_easy_problem_is_learned_in_few_epochs() -> None:
    images, labels = two_classes(64, 0)
    test_images, test_labels = two_classes(300, 1)
    net = seeded_convnet()
    untrained = accuracy(net, test_images, test_labels)
    generator = torch.Generator().manual_seed(0)
    result = train_and_test(net, images, labels, test_images, test_labels, epochs=10, batch=16, generator=generator)
    assert untrained < 0.8 < result
    assert result == accuracy(net, test_images, test_labels, batch=7)


@pytest.mark.parametrize("epochs", [0, 1, 4, 5])
def test_the_schedule_is_the_published_one(epochs: int) -> None:
    """Hand-written SGD: E + 1 epochs, rate / 10 and momentum 0 after the epoch E // 2 + 1 (counted from 0)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 1, 2, 2, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    weight, bias = (parameter.detach().clone() for parameter in net.parameters())
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    lr = 0.5
    one_hot = F.one_hot(labels, 3).double()
    for epoch in range(epochs + 1):
        residual = ((images.flatten(1) @ weight.T + bias).softmax(1) - one_hot) / 6
        gradients = [residual.T @ images.flatten(1) + 0.01 * weight, residual.sum(0) + 0.01 * bias]
        velocity = [0.9 * old + new for old, new in zip(velocity, gradients, strict=True)]
        weight, bias = weight - lr * velocity[0], bias - lr * velocity[1]
        if epoch == epochs // 2 + 1:
            lr, velocity = lr / 10, [torch.zeros_like(weight), torch.zeros_like(bias)]
    train_and_test(net, images, labels, images, labels, epochs, lr=0.5, weight_decay=0.01, generator=generator)
    torch.testing.assert_close(net[1].weight.detach(), weight, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(net[1].bias.detach(), bias, rtol=1e-12, atol=1e-13)


def test_the_rate_falls_once() -> None:
    assert [decay_epoch(epochs) for epochs in (1, 2, 300, 1000)] == [1, 2, 151, 501]


def test_augmentation_meets_training_batches_only() -> None:
    images, labels = two_classes(10, 0)
    seen: list[int] = []

    def augment(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return batch

    generator = torch.Generator().manual_seed(0)
    train_and_test(
        seeded_convnet(), images, labels, images, labels, epochs=1, batch=8, augment=augment, generator=generator
    )
    assert seen == [8, 2, 8, 2]


def test_accuracy_counts_the_largest_logit_in_evaluation_mode() -> None:
    class Echo(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert not self.training
            return images.flatten(1)

    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, 4.0]]).view(4, 2, 1, 1)
    assert accuracy(Echo(), logits, torch.tensor([1, 0, 0, 0]), batch=3) == 0.75
