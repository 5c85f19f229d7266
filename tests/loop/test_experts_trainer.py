"""Training of experts against the textbook, one network at a time by torch.optim."""

import pytest
import torch

from bench.naive.trajectory import train_expert
from fastdistill.augmentation import dsa
from fastdistill.config import DataConfig, StudentConfig
from fastdistill.data.normalization import Normalization
from fastdistill.data.store import ImageStore
from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.draws import Purpose, uniform
from fastdistill.experts_config import ExpertsConfig
from fastdistill.loop.experts_trainer import Trainer, strategy_of
from fastdistill.students.architectures import build_student
from fastdistill.students.weights import initial_weights

COUNT, BATCH, EPOCHS = 21, 8, 3
VMAP = Batching(path=Path.VMAP, piece=100, students=3)
LOOP = Batching(path=Path.LOOP, piece=5, students=1)


@pytest.fixture(scope="module")
def store():
    generator = torch.Generator().manual_seed(0)
    return ImageStore(
        images=torch.randint(0, 256, (COUNT, 1, 8, 8), dtype=torch.uint8, generator=generator),
        labels=torch.arange(COUNT) % 3,
        class_names=("a", "b", "c"),
        normalization=Normalization(mean=(0.5,), std=(0.3,)),
    )


def settings(**changes):
    student = StudentConfig(width=4, depth=2)
    return ExpertsConfig(**{"student": student, "batch": BATCH, "augmentation": "none", "seed": 5, **changes})


def trained(config, store, indices, *, batching=VMAP, dtype=torch.float64, epochs=EPOCHS):
    """Chunks after every epoch."""
    trainer = Trainer(config, store, batching, batching, dtype=dtype)
    chunks = [trainer.start(torch.tensor(indices))]
    for epoch in range(1, epochs + 1):
        chunks.append(trainer.epoch(chunks[-1], epoch))
    return chunks


RECIPES = {
    "published": {},
    "momentum": {"momentum": 0.9, "learning_rate": 0.05},
    "decay": {"weight_decay": 0.1},
    "both": {"momentum": 0.5, "weight_decay": 0.01},
    "one batch": {"batch": 100, "momentum": 0.9},
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("batching", [VMAP, LOOP], ids=["vmap", "loop"])
def test_experts_equal_the_textbook(store, recipe, batching):
    config = settings(**recipe)
    experts = [2, 7]
    chunks = trained(config, store, experts, batching=batching)
    images = store.batch(torch.arange(COUNT), torch.float64)
    for row, expert in enumerate(experts):
        net = build_student(
            "convnet", channels=1, height=8, width=8, num_classes=3, net_width=4, depth=2, device="cpu"
        ).double()
        layout = Layout.of(net)
        start = initial_weights(
            net, "default", seed=5, step=0, students=torch.tensor([expert]), purpose=Purpose.EXPERT_WEIGHTS
        )
        net.load_state_dict({name: view[0] for name, view in layout.views(start.double()).items()})
        epochs = []
        for epoch in range(EPOCHS):
            keys = uniform(5, Purpose.EXPERT_MINIBATCH, epoch, torch.tensor([expert]), COUNT)[0]
            order = keys.argsort(stable=True) if config.batch < COUNT else torch.arange(COUNT)
            epochs.append(order.split(config.batch))
        snapshots = train_expert(
            net, images, store.labels, epochs, config.learning_rate, config.momentum, config.weight_decay
        )
        for chunk, snapshot in zip(chunks, snapshots, strict=True):
            assert (chunk.weights[row] - layout.flatten(snapshot)).abs().max() <= 1e-10
        moved = (chunks[-1].weights[row] - chunks[0].weights[row]).abs().max()
        assert moved > 1e-3


def test_the_textbook_gets_the_augmentation_of_every_step_too(store):
    config = settings(augmentation="color_crop_cutout_scale_rotate", align_corners=False)
    expert = 4
    chunks = trained(config, store, [3, expert])
    strategy = dsa.Strategy.parse(config.augmentation, align_corners=False)

    def augment(images, step):
        draw = dsa.draw_per_image(
            strategy,
            seed=5,
            step=step,
            students=torch.tensor([expert]),
            images=len(images),
            purpose=Purpose.EXPERT_AUGMENTATION,
        )
        return dsa.augment(images[None], strategy, draw)[0]

    net = build_student(
        "convnet", channels=1, height=8, width=8, num_classes=3, net_width=4, depth=2, device="cpu"
    ).double()
    layout = Layout.of(net)
    net.load_state_dict({name: view[1] for name, view in layout.views(chunks[0].weights).items()})
    orders = [
        uniform(5, Purpose.EXPERT_MINIBATCH, epoch, torch.tensor([expert]), COUNT)[0].argsort(stable=True).split(BATCH)
        for epoch in range(EPOCHS)
    ]
    images = store.batch(torch.arange(COUNT), torch.float64)
    snapshots = train_expert(net, images, store.labels, orders, config.learning_rate, augment=augment)
    plain = trained(settings(), store, [expert])
    assert (chunks[-1].weights[1] - layout.flatten(snapshots[-1])).abs().max() <= 1e-10
    assert (chunks[-1].weights[1] - plain[-1].weights[0]).abs().max() > 1e-4


@pytest.mark.parametrize("augmentation", ["none", "auto"])
def test_an_expert_is_the_same_in_any_chunk(store, augmentation):
    config = settings(augmentation=augmentation, momentum=0.9)
    together = trained(config, store, [0, 1, 2, 3, 4])
    alone = trained(config, store, [3])
    assert torch.equal(together[0].weights[3], alone[0].weights[0])
    for one, other in zip(together, alone, strict=True):
        assert (one.weights[3] - other.weights[0]).abs().max() <= 1e-12
        assert abs(one.loss[3] - other.loss[0]) <= 1e-12
    assert (together[0].weights[3] - together[0].weights[4]).abs().max() > 0.1


def test_experts_are_not_the_students_of_other_purposes(store):
    trainer = Trainer(settings(), store, VMAP, VMAP)
    drawn = trainer.start(torch.arange(2)).weights
    for purpose in (Purpose.WEIGHTS, Purpose.EVALUATION_WEIGHTS):
        others = initial_weights(trainer.module, "default", seed=5, step=0, students=torch.arange(2), purpose=purpose)
        assert (drawn - others).abs().max() > 0.1


def test_the_loss_is_the_mean_over_the_epochs_images(store):
    config = settings(batch=COUNT)
    start, after = trained(config, store, [1], epochs=1)
    trainer = Trainer(config, store, VMAP, VMAP, dtype=torch.float64)
    logits = trainer.tester.logits(start.weights, {}, store.batch(torch.arange(COUNT), torch.float64))
    expected = torch.nn.functional.cross_entropy(logits[0], store.labels)
    assert abs(after.loss[0] - expected) <= 1e-12
    assert float(start.loss) == 0
    several = trained(settings(learning_rate=1e-12), store, [1], epochs=1)[1]  # batches of 8, 8 and 5
    assert abs(several.loss[0] - expected) <= 1e-9


def test_accuracy_is_the_share_of_images_that_are_classified_right(store, monkeypatch):
    monkeypatch.setattr("fastdistill.loop.experts_trainer.TEST_BLOCK", 4)
    trainer = Trainer(settings(), store, VMAP, VMAP)
    weights = trainer.start(torch.arange(3)).weights
    found = trainer.accuracy(weights, store)
    logits = trainer.tester.logits(weights, {}, store.batch(torch.arange(COUNT)))
    assert torch.equal(found, (logits.argmax(-1) == store.labels).double().mean(1))


def test_running_statistics_are_refused(store):
    config = settings(student=StudentConfig(width=4, depth=2, norm="batch"))
    with pytest.raises(ValueError, match="without running statistics as experts, got batch norm"):
        Trainer(config, store, VMAP, VMAP)
    config = settings(student=StudentConfig(architecture="gtn"))
    with pytest.raises(ValueError, match="without running statistics as experts, got mean-only batch norm: use anoth"):
        Trainer(config, store, VMAP, VMAP)


def test_auto_mirrors_no_digits():
    assert strategy_of(ExpertsConfig()) == "color_crop_cutout_scale_rotate"
    assert strategy_of(ExpertsConfig(data=DataConfig(source="cifar10"))) == "color_crop_cutout_flip_scale_rotate"
    assert strategy_of(settings()) == "none"


def test_a_chunk_moves_with_all_it_has(store, device):
    chunk = trained(settings(momentum=0.5), store, [1, 2], epochs=1)[1]
    moved = chunk.to(device)
    tensors = (moved.indices, moved.weights, moved.velocity, moved.loss)
    assert {tensor.device.type for tensor in tensors} == {device.type}
    assert torch.equal(moved.velocity.cpu(), chunk.velocity)
    assert Trainer(settings(), store, VMAP, VMAP).start(torch.arange(2)).to(device).velocity is None
