import torch

from fastdistill.config import DataConfig, RunConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.draws import Purpose
from fastdistill.loop.artefact import as_distilled
from fastdistill.loop.plan import make_plan
from fastdistill.loop.setup import initial_state, make_method
from fastdistill.method_configs import matching_recipe


def prepare(**recipe):
    train = load_source("digits").train
    config = RunConfig(
        ipc=2,
        runs=2,
        data=DataConfig(),
        student=StudentConfig(width=4, depth=2),
        method=matching_recipe("dc", 2, **recipe),
        device="cpu",
    )
    return config, train, make_plan(config, train.shape, train.num_classes)


def test_the_first_state_and_the_artefact_fit_the_configuration():
    config, train, plan = prepare(start="real")
    state = initial_state(config, plan, train)
    assert state.images.shape == (2, 10, 2, 1, 8, 8)
    assert state.moments["images.velocity"].eq(0).all()
    distilled = as_distilled(config, state.learned, train, "digits", "hash")
    assert distilled.images.shape == (2, 20, 1, 8, 8)
    assert distilled.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert torch.equal(distilled.images[1, 4], state.images[1, 2, 0])
    assert distilled.pixels().min() > -1e-5  # real pixels come back in [0, 1]
    assert distilled.pixels().max() < 1 + 1e-5


def test_the_method_samples_the_training_images_by_class():
    config, train, plan = prepare(real_batch=1000)
    batch = make_method(config, plan, train)._sample(Purpose.REAL_BATCH, 0, torch.arange(3), 1000)
    smallest = min(train.class_sizes)
    assert batch.images.shape == (3, 10, smallest, 1, 8, 8)
    assert batch.labels.shape == (3, 10, smallest)
    known = {
        tuple(image.flatten().tolist()): int(label)
        for image, label in zip(train.batch(torch.arange(len(train))), train.labels, strict=True)
    }
    for label in range(10):
        for image in batch.images[2, label, :5]:
            assert known[tuple(image.flatten().tolist())] == label
