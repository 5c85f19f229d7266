import pytest
import torch
from torch import nn
from torch.func import grad, jvp, vmap
from torch.profiler import record_function

from fastdistill.derivatives.memory import LARGE, Footprint, Ledger, PhaseLedger, peak_bytes, trace


def counted(program, *inputs):
    """The same count on real tensors."""
    with Ledger() as ledger:
        result = program(*inputs)
        footprint = ledger.footprint
    del result
    return footprint


def test_what_is_made_counts_until_it_is_gone():
    def program(x):
        first = x + 1  # 400 bytes
        second = first.view(10, 10) * 2  # 800 at once
        del first
        return second.sum()

    assert trace(program, torch.zeros(100)).peak == 800
    assert trace(program, torch.zeros(100)).kept == 4
    assert peak_bytes(lambda x: x.t()[2:], torch.zeros(9, 9)) == 0


def test_tensors_of_others_are_never_counted():
    outside = torch.zeros(1000, device="meta")
    assert peak_bytes(lambda x: outside[:100] + x, torch.zeros(100)) == 400


def test_large_blocks_are_kept_apart():
    def program(x):
        return x.repeat(LARGE // 4), x + 1

    found = trace(program, torch.zeros(1))
    assert (found.large, found.small, found.kept) == (LARGE, 4, LARGE + 4)


@pytest.mark.parametrize("transform", ["gradient", "tangent", "graph"])
def test_meta_tensors_count_as_real_ones(transform):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

    def loss(weights, x):
        return torch.func.functional_call(network, weights, (x,)).square().sum()

    weights = {name: parameter.detach().expand(5, *parameter.shape) for name, parameter in network.named_parameters()}

    def program(weights, x):
        if transform == "gradient":
            return vmap(grad(loss), in_dims=(0, None))(weights, x)
        if transform == "tangent":
            return vmap(lambda w: jvp(grad(lambda w: loss(w, x)), (w,), (w,)))(weights)
        w = {name: tensor[0].detach().requires_grad_() for name, tensor in weights.items()}
        return torch.autograd.grad(loss(w, x), list(w.values()))

    x = torch.zeros(6, 1, 8, 8)
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    assert trace(program, weights, x) == counted(program, weights, x)


def test_the_course_tells_what_is_held_when_small_blocks_grow():
    def program(x):
        large = x.repeat(LARGE // 4)
        small = x.repeat(100)
        del large
        more = x.repeat(50)
        return x.repeat(LARGE // 2), small, more

    assert trace(program, torch.zeros(1)).course == ((0, LARGE), (400, LARGE), (600, 2 * LARGE))


def test_footprints_are_put_together():
    first = Footprint(peak=10, kept=1, course=((4, 0), (6, 4)))
    second = Footprint(peak=9, kept=2, course=((5, 9), (7, 1)))
    assert Footprint.in_turn([first, second]) == Footprint(peak=10, kept=2, course=((4, 0), (6, 9), (7, 1)))
    assert Footprint.in_turn([]) == Footprint()
    blocks = Footprint.of_blocks([3, LARGE])
    assert blocks == Footprint(peak=LARGE + 3, kept=LARGE + 3, course=((3, LARGE),))
    assert first.above(blocks).course == ((7, LARGE), (9, LARGE + 4))
    assert Footprint().above(blocks) == blocks
    assert blocks.times(2).peak == 2 * LARGE + 6
    assert (first.small, first.large) == (6, 4)


def test_peaks_are_known_by_label():
    ledger = PhaseLedger()
    with ledger:
        kept = torch.zeros(100, dtype=torch.uint8)
        with record_function("outer"):
            more = kept.clone()
            with record_function("inner"):
                passing = torch.cat([kept, more, more])
                del passing
            del more
        kept = kept.clone()
    assert ledger.peaks == {"": 200, "outer": 200, "inner": 500}
    assert ledger.footprint.peak == 500
