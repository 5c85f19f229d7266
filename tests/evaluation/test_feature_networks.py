"""Feature networks against one plain training, and against each network alone."""

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from fastdistill.data.sources import load_source
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.draws import Purpose
from fastdistill.evaluation.coresets import joined_features
from fastdistill.evaluation.evaluate import store_fetch
from fastdistill.evaluation.feature_networks import train_feature_networks
from fastdistill.failures import RunFailed
from fastdistill.students.architectures import build_student
from fastdistill.students.training import Training, train_students
from fastdistill.students.weights import initial_buffers, initial_weights

TRAINING = Training(epochs=3, learning_rate=0.05, momentum=0.9, weight_decay=5e-4, batch=20, schedule="cosine")


@pytest.fixture(scope="module")
def store():
    return load_source("digits").train.subset(torch.arange(50))


def network(norm="instance"):
    module = build_student("convnet", channels=1, height=8, width=8, num_classes=10, net_width=4, depth=2, norm=norm)
    return module.to("meta")


def trained(store, norm="instance", **changes):
    training = replace(TRAINING, **changes)
    return train_feature_networks(network(norm), store, training, count=2, seed=3, dtype=torch.float64)


@pytest.mark.parametrize(("norm", "momentum"), [("instance", 0.9), ("batch", 0.9), ("instance", 0.0)])
def test_classifying_after_every_epoch_changes_no_training(store, norm, momentum):
    found, students, module = trained(store, norm, momentum=momentum), torch.arange(2), network(norm)
    primitive = Functional(module, Batching(path=Path.LOOP, piece=100, students=1))
    weights = initial_weights(module, "default", seed=3, step=0, students=students, purpose=Purpose.FEATURE_WEIGHTS)
    weights, buffers = train_students(
        primitive,
        weights.double(),
        initial_buffers(module, 2, dtype=torch.float64, device=store.device),
        store_fetch(store, torch.float64),
        len(store),
        replace(TRAINING, momentum=momentum),
        seed=3,
        students=students,
        purpose=Purpose.FEATURE_MINIBATCH,
    )
    torch.testing.assert_close(found.weights, weights, rtol=0, atol=1e-12)
    assert found.correct.shape == (3, 2, 50)
    logits = primitive.logits(weights, buffers, store.batch(torch.arange(50), torch.float64))
    assert torch.equal(found.correct[-1], logits.argmax(-1) == store.labels)
    shorter = trained(store, norm, momentum=momentum, epochs=1)
    assert torch.equal(found.correct[0], shorter.correct[0])


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_features_are_those_of_each_network(store, norm):
    found, some = trained(store, norm), torch.tensor([4, 9, 30])
    module = build_student("convnet", channels=1, height=8, width=8, num_classes=10, net_width=4, depth=2, norm=norm)
    rows = []
    for student in range(2):
        views = Layout.of(module).views(found.weights[student])
        state = {name: tensor[student] for name, tensor in found.buffers.items()}
        head = torch.nn.Module()
        head.network = module.double().eval()
        head.forward = lambda images, head=head: head.network.features(images)
        named = {f"network.{name}": tensor for name, tensor in {**views, **state}.items()}
        rows.append(functional_call(head, named, (store.batch(some, torch.float64),)))
    expected = joined_features(torch.stack(rows))
    torch.testing.assert_close(found.features(store, some), expected, rtol=0, atol=1e-12)


def test_they_are_others_than_those_that_judge(store):
    first = trained(store, epochs=0).weights
    judging = initial_weights(
        network(), "default", seed=3, step=0, students=torch.arange(2), purpose=Purpose.EVALUATION_WEIGHTS
    )
    assert not torch.equal(first, judging.double())


def test_a_network_that_diverges_is_named(store):
    with pytest.raises(RunFailed, match="finite weights, got others in epoch 1 of network 0: choose another student"):
        trained(store, learning_rate=1e300)
