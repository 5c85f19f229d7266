"""By dual layers every method's step is one graph: no breaks, and none compiled again for other values."""

import pytest
import torch
from torch._dynamo.utils import counters

from fastdistill.derivatives.inner import SGD, Adam
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.derivatives.primitive import make_primitive
from fastdistill.derivatives.trajectory import Steps
from fastdistill.derivatives.unroll import adjoint, advance, unroll
from fastdistill.methods.matching import Batch, Matching, matching_cotangent
from fastdistill.students.architectures import build_student
from fastdistill_kernels import RowTable

WHOLE = Batching(path=Path.DUAL, piece=100, students=100, groups=100)
STUDENTS, CLASSES = 2, 3


@pytest.fixture
def primitive():
    torch._dynamo.reset()
    counters.clear()
    module = build_student("convnet", channels=1, height=8, width=8, num_classes=CLASSES, depth=2, net_width=4)
    return make_primitive(module, WHOLE)


def random(*shape, seed):
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_one_graph(step, *calls):
    """Holds a step, as one graph, to itself; for all calls the same graph."""
    whole = torch.compile(step, backend="eager", fullgraph=True, dynamic=False)
    for given in calls:
        for found, expected in zip(whole(*given), step(*given), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_matching_step(primitive):
    layout = primitive.layout
    table = RowTable.build(layout.shapes, layout.offsets, layout.size, "ours", None)
    matching = Matching(distance="ours", table=table)
    labels = torch.arange(CLASSES)

    def step(weights, real, synthetic):
        batches = (
            Batch(images=images, labels=labels[:, None].expand(images.shape[1:3])) for images in (real, synthetic)
        )
        return matching_cotangent(primitive, primitive, weights, {}, *batches, matching)

    as_one_graph(
        step,
        *(
            (
                random(STUDENTS, layout.size, seed=seed),
                random(STUDENTS, CLASSES, 4, 1, 8, 8, seed=seed + 1),
                random(STUDENTS, CLASSES, 2, 1, 8, 8, seed=seed + 2),
            )
            for seed in (0, 10)
        ),
    )


@pytest.mark.parametrize("optimizer", [SGD(), Adam()], ids=["sgd", "adam"])
def test_an_inner_step_and_an_adjoint_step(primitive, optimizer):
    labels = torch.arange(CLASSES)
    rates = torch.full((1, STUDENTS), 0.1, dtype=torch.float64)
    steps = Steps(optimizer=optimizer, rates=rates, momenta=9 * rates if optimizer.slots else None)

    def inner(weights, images):
        return advance(primitive, weights, {}, lambda number: (images, labels), steps)

    def back(weights, images, start):
        found = []
        trajectory = unroll(primitive, weights, {}, lambda number: (images, labels), steps)
        slopes = adjoint(
            primitive,
            trajectory,
            lambda number: (images, labels),
            start,
            lambda number, images, labels: found.append(images),
            initial=True,
        )
        return found[0], slopes.weights, slopes.rates

    calls = [
        tuple(
            random(*shape, seed=seed + place)
            for place, shape in enumerate(
                ((STUDENTS, primitive.layout.size), (CLASSES, 1, 8, 8), (STUDENTS, primitive.layout.size))
            )
        )
        for seed in (0, 10)
    ]
    as_one_graph(inner, *(call[:2] for call in calls))
    torch._dynamo.reset()
    counters.clear()
    as_one_graph(back, *calls)
