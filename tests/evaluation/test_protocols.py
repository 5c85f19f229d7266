import pytest
import torch

from bench.naive.evaluation import decay_epoch
from fastdistill.evaluation.protocols import PROTOCOLS, protocol

PARITY = {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "batch": 256}


@pytest.mark.parametrize(
    ("name", "dataset", "norm", "epochs", "augmentation"),
    [
        ("dc", "cifar10", "instance", 300, "none"),
        ("dc", "mnist", "instance", 1000, "crop_scale_rotate"),
        ("dc", "cifar10", "batch", 1000, "crop_noise"),
        ("dsa", "cifar10", "instance", 1000, "color_crop_cutout_flip_scale_rotate"),
        ("dsa", "mnist", "instance", 1000, "color_crop_cutout_scale_rotate"),
        ("dsa", "svhn", "instance", 1000, "color_crop_cutout_scale_rotate"),
        ("default", "mnist", "instance", 300, "none"),
    ],
)
def test_protocols_are_those_of_the_papers(name, dataset, norm, epochs, augmentation):
    found = protocol(name, dataset=dataset, norm=norm)
    assert (found.name, found.epochs, found.augmentation) == (name, epochs, augmentation)
    for field, value in PARITY.items():
        assert getattr(found.training, field) == value


@pytest.mark.parametrize("epochs", [1, 7, 300, 1000])
def test_the_published_schedule_is_repeated_with_its_quirks(epochs):
    training = protocol("dc", dataset="cifar10", norm="instance").with_epochs(epochs).training
    assert training.epochs == epochs + 1
    assert training.restart
    assert training.decay_epoch == decay_epoch(epochs) + 1  # the textbook names the last epoch at the full rate
    rates = [training.rate(epoch) for epoch in range(epochs + 1)]
    assert rates == [0.01 if epoch <= epochs // 2 + 1 else 0.001 for epoch in range(epochs + 1)]


def test_our_own_protocol_has_no_quirks():
    training = protocol("default", dataset="mnist", norm="instance").training
    assert training.epochs == 300
    assert not training.restart
    assert training.rate(0) == 0.01
    assert 0 < training.rate(299) < 1e-5


def test_augmentations_follow_the_protocol():
    students = torch.arange(3)
    images = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert protocol("default", dataset="mnist", norm="instance").augment(0, students) is None
    for name in ("dc", "dsa"):
        augment = protocol(name, dataset="mnist", norm="instance").augment(0, students)
        found = augment(images, 4)
        assert found.shape == (3, 5, 1, 28, 28)
        assert torch.equal(found, augment(images, 4))
        assert not torch.equal(found, augment(images, 5))
        assert not torch.equal(found[0], found[1])


def test_unknown_protocols_are_named():
    with pytest.raises(ValueError, match="expected a protocol among dc, dsa, default, got 'mtt'"):
        protocol("mtt", dataset="mnist", norm="instance")
    assert PROTOCOLS == ("dc", "dsa", "default")
