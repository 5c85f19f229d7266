import pytest
import torch

from bench.naive.evaluation import decay_epoch
from fastdistill.evaluation.protocols import PROTOCOLS, protocol
from fastdistill.evaluation.replay import Replay


def make(name, dataset="mnist", **options):
    return protocol(name, dataset=dataset, architecture="convnet", norm="instance", **options)


PARITY = {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "batch": 256}


@pytest.mark.parametrize(
    ("name", "dataset", "architecture", "norm", "epochs", "augmentation"),
    [
        ("dc", "cifar10", "convnet", "instance", 300, "none"),
        ("dc", "mnist", "convnet", "instance", 1000, "crop_scale_rotate"),
        ("dc", "mnist", "lenet", "batch", 1000, "crop_scale_rotate"),
        ("dc", "cifar10", "convnet", "batch", 1000, "crop_noise"),
        ("dc", "mnist", "convnet", "batch", 1000, "crop_noise"),
        ("dc", "cifar10", "resnet18", "batch", 300, "none"),
        ("dsa", "cifar10", "convnet", "instance", 1000, "color_crop_cutout_flip_scale_rotate"),
        ("dsa", "mnist", "convnet", "instance", 1000, "color_crop_cutout_scale_rotate"),
        ("dsa", "svhn", "convnet", "instance", 1000, "color_crop_cutout_scale_rotate"),
        ("default", "mnist", "convnet", "instance", 300, "none"),
    ],
)
def test_protocols_are_those_of_the_papers(name, dataset, architecture, norm, epochs, augmentation):
    found = protocol(name, dataset=dataset, architecture=architecture, norm=norm)
    assert (found.name, found.epochs, found.augmentation) == (name, epochs, augmentation)
    for field, value in PARITY.items():
        assert getattr(found.training, field) == value


@pytest.mark.parametrize("epochs", [1, 7, 300, 1000])
def test_the_published_schedule_is_repeated_with_its_quirks(epochs):
    training = make("dc", "cifar10").with_epochs(epochs).training
    assert training.epochs == epochs + 1
    assert training.restart
    assert training.decay_epoch == decay_epoch(epochs) + 1  # the textbook names the last epoch at the full rate
    rates = [training.rate(epoch) for epoch in range(epochs + 1)]
    assert rates == [0.01 if epoch <= epochs // 2 + 1 else 0.001 for epoch in range(epochs + 1)]


def test_our_own_protocol_has_no_quirks():
    training = make("default", "mnist").training
    assert training.epochs == 300
    assert not training.restart
    assert training.rate(0) == 0.01
    assert 0 < training.rate(299) < 1e-5


def test_augmentations_follow_the_protocol():
    students = torch.arange(3)
    images = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert make("default", "mnist").augment(0, students) is None
    for name in ("dc", "dsa"):
        augment = make(name, "mnist").augment(0, students)
        found = augment(images, 4)
        assert found.shape == (3, 5, 1, 28, 28)
        assert torch.equal(found, augment(images, 4))
        assert not torch.equal(found, augment(images, 5))
        assert not torch.equal(found[0], found[1])


def test_scale_and_rotate_sample_as_the_images_were_distilled():
    images = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = [make("dsa", align_corners=align).augment(0, torch.arange(20))(images, 0) for align in (True, False)]
    assert not torch.equal(*found)


def test_rates_that_images_were_learned_with_keep_the_schedule():
    rates = torch.tensor([0.1, 0.2])
    found = make("dc", rates=rates).with_epochs(5)
    assert found.rates is rates
    assert found.training == make("dc").with_epochs(5).training
    assert torch.equal(found.spread(3).rates, torch.tensor([0.1, 0.1, 0.1, 0.2, 0.2, 0.2]))
    assert make("default").spread(3).rates is None
    replay = Replay(rates=torch.tensor([[0.1], [0.2]]), order=torch.zeros(1, 2, dtype=torch.int64))
    own = make("own", rates=rates, replay=replay)
    assert own.rates is None
    assert own.spread(2).replay.rates.flatten().tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2])


def test_no_epochs_are_refused():
    with pytest.raises(ValueError, match="expected at least one epoch, got 0"):
        make("dc").with_epochs(0)


def test_unknown_protocols_are_named():
    with pytest.raises(ValueError, match="expected a protocol among dc, dsa, default, own, got 'mtt'"):
        make("mtt", "mnist")
    assert PROTOCOLS == ("dc", "dsa", "default", "own")


def test_own_steps_are_replayed_plainly():
    replay = Replay(rates=torch.ones(4), order=torch.zeros(4, 2, dtype=torch.int64))
    found = make("own", replay=replay)
    assert (found.name, found.epochs, found.steps, found.augmentation) == ("own", 0, 4, "none")
    assert found.replay is replay
    assert found.augment(0, torch.arange(2)) is None
    with pytest.raises(ValueError, match=r"expected no epochs for the protocol own, which replays .* 4 steps, got 3"):
        found.with_epochs(3)


def test_other_protocols_leave_own_steps_out():
    found = make("dc", replay=Replay(rates=torch.ones(4), order=torch.zeros(4, 2, dtype=torch.int64)))
    assert found.replay is None
    assert found.steps == 0


def test_images_without_steps_have_no_own_protocol():
    with pytest.raises(ValueError, match="for the protocol own, got images without: choose dc, dsa or default"):
        make("own")
