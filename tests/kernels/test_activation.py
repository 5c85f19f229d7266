import pytest
import torch
from torch.nn import functional

from fastdistill_kernels.reference import activation as reference
from tests.kernels.comparing import error

TEXTBOOK = {
    "none": lambda z: z * 1,
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "softplus": functional.softplus,
    "sigmoid": torch.sigmoid,
    "swish": functional.silu,
}
# both sides of every kink, the kinks, softplus's threshold, and where exponentials overflow in float32
POINTS = torch.tensor([-200.0, -95.0, -30.0, -2.5, -1e-3, 0.0, 1e-3, 0.7, 3.0, 19.9, 20.1, 95.0, 200.0])


def test_all_are_tested():
    assert tuple(TEXTBOOK) == reference.ACTIVATIONS


@pytest.mark.parametrize("kind", reference.ACTIVATIONS)
def test_value_slope_and_curvature_are_torchs(kind):
    z = torch.cat((POINTS.double(), torch.linspace(-7, 23, 301, dtype=torch.float64))).requires_grad_()
    value = TEXTBOOK[kind](z)
    slope = torch.autograd.grad(value.sum(), z, create_graph=True)[0]
    curvature = torch.autograd.grad(slope.sum(), z)[0] if slope.requires_grad else torch.zeros_like(z)
    tangent = torch.cos(z.detach())
    plain = z.detach()
    assert error(reference.value(kind, plain), value.detach()) <= 1e-14
    assert error(reference.slope(kind, plain), slope.detach()) <= 1e-14
    assert error(reference.curvature(kind, plain), curvature) <= 1e-12
    assert error(reference.sloped(kind, plain, tangent), slope.detach() * tangent) <= 1e-14
    assert (kind in reference.CURVED) == bool(curvature.ne(0).any())


def test_a_value_that_is_no_number_stays_so():
    nothing = torch.full((2,), float("nan"))
    for kind in reference.ACTIVATIONS:
        assert reference.value(kind, nothing).isnan().all()


@pytest.mark.parametrize("kind", reference.ACTIVATIONS)
def test_device_functions_equal_the_reference(kind, device, poisoned):
    from tests.kernels.kernel_activation import launched

    z = torch.cat((POINTS, torch.linspace(-7, 23, 51))).to(device)
    for found, made in zip(launched(z, kind), (reference.value, reference.slope, reference.curvature), strict=True):
        truth = made(kind, z.cpu().double())
        assert error(found.cpu(), truth) <= 1e-6
        # each point by itself: a small value must not hide behind large ones; 1e-30 is near float32's least
        assert ((found.cpu() - truth).abs() <= 2e-5 * truth.abs() + 1e-30).all() or kind != "softplus"
    nothing = launched(torch.full((2,), float("nan"), device=device), kind)[0]
    assert nothing.isnan().all()
