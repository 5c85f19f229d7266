"""Cross-entropy with its derivatives against torch's own, differentiated by autograd and forward mode in float64."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fastdistill_kernels.gpu import softmax_xent as gpu
from fastdistill_kernels.reference import softmax_xent as reference
from fastdistill_kernels.softmax_xent import cost_softmax_xent, dual_softmax_xent, softmax_xent
from tests.kernels.any_shape import given, settings, st
from tests.kernels.comparing import DTYPES, LIMITS, error

# students, groups, samples, classes: ones, nothing, primes, more rows than a program takes, more classes than a tile
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 4, 1),
    (2, 3, 5, 10),
    (3, 1, 1, 7),
    (1, 2, 70, 10),
    (2, 1, 131, 3),
    (1, 2, 2, 1000),
    (0, 2, 3, 4),
    (2, 0, 3, 4),
    (2, 3, 0, 4),
    (1, 2, 3, 4097),
]
SHARED = {"own": (False, False), "students": (True, False), "groups": (False, True), "all": (True, True)}

OF_LOGITS, OF_LABELS = (torch.func.grad(functional.cross_entropy, argnums=index) for index in (0, 1))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(shape, kind, shared="own", seed=0):
    """Logits, a tangent, labels: soft rows have any sum, negative ones too."""
    students, groups = (1 if one else extent for one, extent in zip(SHARED[shared], shape[:2], strict=True))
    if kind == "soft":
        labels = random(students, groups, *shape[2:], seed=seed + 2)
    else:
        chooser = torch.Generator().manual_seed(seed)
        labels = torch.randint(shape[3], (students, groups, shape[2]), generator=chooser)
    return 3 * random(*shape, seed=seed), random(*shape, seed=seed + 1), labels


def convert(tensors, dtype, device="cpu"):
    return [tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device) for tensor in tensors]


def textbook(z, dz, labels):
    """Every pair by itself: torch's loss, its gradient, and tangents of both and of the labels' gradient."""
    loss, dloss = torch.zeros(2, *z.shape[:2], dtype=torch.float64)
    gradient, dgradient, product = torch.zeros(3, *z.shape, dtype=torch.float64)
    labels = labels.expand(*z.shape[:2], *labels.shape[2:])
    for at in [(s, g) for s in range(z.shape[0]) for g in range(z.shape[1])] if z.shape[2] else []:
        y = labels[at]
        loss[at], dloss[at] = torch.func.jvp(lambda x, y=y: functional.cross_entropy(x, y), (z[at],), (dz[at],))
        one = z[at].clone().requires_grad_()
        (gradient[at],) = torch.autograd.grad(functional.cross_entropy(one, y), one)
        dgradient[at] = torch.func.jvp(lambda x, y=y: OF_LOGITS(x, y), (z[at],), (dz[at],))[1]
        if y.is_floating_point():
            product[at] = torch.func.jvp(lambda x, y=y: OF_LABELS(x, y), (z[at],), (dz[at],))[1]
    return loss, dloss, gradient, dgradient, product if labels.ndim == z.ndim else None


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_equals_the_textbook(shape, kind, shared):
    z, dz, labels = make(shape, kind, shared)
    expected = textbook(z, dz, labels)
    found = dual_softmax_xent(z, dz, labels)
    assert (found[4] is None) == (kind == "hard")
    for one, other in zip(found, expected, strict=True):
        assert other is None or error(one, other) <= 1e-10
    loss, gradient = softmax_xent(z, labels)
    assert error(loss, expected[0]) <= 1e-10 and error(gradient, expected[2]) <= 1e-10


def test_label_products_are_what_soft_labels_receive_from_both_derivatives():
    z, dz, labels = make((2, 3, 5, 10), "soft")
    leaf = labels.clone().requires_grad_()
    zed = z.clone().requires_grad_()
    losses = -(leaf * torch.log_softmax(zed, -1)).sum((-2, -1)) / 5
    (gradient,) = torch.autograd.grad(losses.sum(), zed, create_graph=True)
    along, *_ = torch.autograd.grad((gradient * dz).sum(), leaf)  # double backward, no forward mode
    assert error(dual_softmax_xent(z, dz, labels)[4], along) <= 1e-10


def check_kernel(shape, kind, shared, precision, device):
    dtype = DTYPES[precision]
    given = convert(make(shape, kind, shared), dtype, device)
    z, dz, labels = convert(given, torch.float64, "cpu")  # rounded alike
    losses, gradient, dgradient, product = reference.dual_softmax_xent(z, dz, labels)
    found = gpu.dual_softmax_xent(*given)
    assert [one.dtype for one in found] == [torch.float32, dtype, dtype, dtype]
    for one, other in zip(found, (losses, gradient, dgradient, product), strict=True):
        assert error(one.cpu(), other) <= LIMITS[precision]
    loss, alone = gpu.softmax_xent(given[0], given[2])
    assert torch.equal(loss, found[0][0]) and torch.equal(alone, found[1])
    assert error(found[0][0].cpu(), losses[0]) <= LIMITS["float32"]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_equal_the_reference(shape, kind, precision, device, poisoned):
    check_kernel(shape, kind, "own", precision, device)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("shared", SHARED)
def test_kernels_read_shared_labels_where_they_lie(shared, kind, device, poisoned):
    check_kernel((2, 3, 5, 10), kind, shared, "float32", device)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 70), st.integers(1, 40)),
    kind=st.sampled_from(["hard", "soft"]),
    shared=st.sampled_from(sorted(SHARED)),
    precision=st.sampled_from(["float32", "bf16"]),
)
def test_kernels_equal_the_reference_at_any_size(shape, kind, shared, precision):
    check_kernel(shape, kind, shared, precision, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("shape", [(1, 2, 3, 100), (2, 1, 5, 9)], ids=str)
def test_rows_of_many_tiles_equal_the_reference(shape, kind, monkeypatch, device, poisoned):
    monkeypatch.setattr(gpu, "_LONGEST", 8)
    assert gpu.tiles(*shape[2:])[2] > 1
    check_kernel(shape, kind, "students", "float32", device)


def test_tiles_without_any_mass_are_passed_over(monkeypatch, device, poisoned):
    monkeypatch.setattr(gpu, "_LONGEST", 8)
    given = convert(make((1, 2, 3, 20), "hard"), torch.float32, device)
    given[0][0, 0, 0, :17], given[2][0, 0, 0] = -math.inf, 18
    given[0][0, 0, 1, 3:], given[2][0, 0, 1] = -math.inf, 2
    truth = reference.dual_softmax_xent(*convert(given, torch.float64, "cpu"))
    for one, other in zip(gpu.dual_softmax_xent(*given), truth, strict=True):
        assert error(one.cpu(), other) <= LIMITS["float32"]


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_references_of_other_precisions_are_as_exact(precision, kind):
    given = convert(make((2, 3, 5, 10), kind), DTYPES[precision])
    truth = reference.dual_softmax_xent(*convert(given, torch.float64))
    found = reference.dual_softmax_xent(*given)
    assert [one.dtype for one in found] == [torch.float32] + 3 * [DTYPES[precision]]
    for one, other in zip(found, truth, strict=True):
        assert error(one, other) <= LIMITS[precision]
    assert error(found[0], truth[0]) <= LIMITS["float32"]
    for one, other in zip(reference.softmax_xent(given[0], given[2]), (found[0][0], found[1]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("shared", ["own", "students", "groups"])
def test_pieces_do_not_change_bits(kind, shared, monkeypatch):
    given = convert(make((5, 4, 3, 6), kind, shared), torch.float32)
    whole = reference.dual_softmax_xent(*given)
    for piece in (1, 18, 3 * 18, 2 * 4 * 18, 1 << 40):
        monkeypatch.setattr(reference, "_PIECE", piece)
        for one, other in zip(reference.dual_softmax_xent(*given), whole, strict=True):
            assert torch.equal(one, other)
        assert torch.equal(reference.softmax_xent(given[0], given[2])[1], whole[1])


@pytest.mark.parametrize("implementation", [reference, gpu], ids=["reference", "kernel"])
def test_a_student_has_the_same_bits_alone(implementation, device):
    given = convert(make((9, 2, 70, 10), "soft"), torch.float32, device)
    together = implementation.dual_softmax_xent(*given)
    for student in (0, 4, 8):
        alone = implementation.dual_softmax_xent(*[each[[student]] for each in given])
        assert torch.equal(alone[0], together[0][:, [student]])
        for one, other in zip(alone[1:], together[1:], strict=True):
            assert torch.equal(one, other[[student]])


@pytest.mark.parametrize("implementation", [reference, gpu], ids=["reference", "kernel"])
def test_large_logits_do_not_overflow(implementation, device):
    z, dz, labels = make((2, 2, 6, 10), "hard")
    given = convert((1e4 * z, dz, labels), torch.float32, device)
    truth = reference.dual_softmax_xent(*convert(given, torch.float64, "cpu"))
    for one, other in zip(implementation.dual_softmax_xent(*given), truth, strict=True):
        assert error(one.cpu(), other) <= LIMITS["float32"]


@pytest.mark.parametrize("implementation", [reference, gpu], ids=["reference", "kernel"])
def test_strided_arguments_are_read_where_they_lie(implementation, device):
    z, dz, labels = convert(make((2, 3, 5, 10), "soft"), torch.float32, device)
    expected = implementation.dual_softmax_xent(z, dz, labels)
    turned = [each.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0) for each in (z, dz, labels)]
    for one, other in zip(implementation.dual_softmax_xent(*turned), expected, strict=True):
        assert one.is_contiguous() and error(one, other) <= LIMITS["float32"]
    hard = torch.randint(10, (5, 3), device=device).T.expand(1, 3, 5)
    expected = implementation.softmax_xent(z, hard.contiguous())
    for one, other in zip(implementation.softmax_xent(turned[0], hard), expected, strict=True):
        assert error(one, other) <= LIMITS["float32"]


def test_labels_lie_as_far_apart_as_they_like(device):
    # memory that is reserved, not used, but for three numbers in it: the last one 2³¹ from the first
    far = torch.empty(2**31 + 1, dtype=torch.bfloat16, device=device).as_strided((1, 1, 1, 3), (0, 0, 0, 2**30))
    z, _, labels = convert(make((1, 1, 1, 3), "soft"), torch.bfloat16, device)
    far.copy_(labels)
    for one, other in zip(gpu.softmax_xent(z, far), gpu.softmax_xent(z, labels), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("label", [-1, 10, -100])
def test_labels_outside_the_classes_do_not_pass_silently(label, device):
    z, dz, labels = make((2, 2, 5, 10), "hard")
    labels[1, 0, 3] = label
    with pytest.raises(RuntimeError, match="out of bounds"):
        softmax_xent(z, labels)
    given = convert((z, dz, labels), torch.float32, device)
    loss, _ = gpu.softmax_xent(given[0], given[2])
    assert loss.isnan().tolist() == [[False, False], [True, False]]


# operators of torch


def arguments_of(dual, kind, dtype=torch.float32, shape=(2, 3, 5, 10)):
    z, dz, labels = convert(make(shape, kind, "students"), dtype)
    return (z, dz, labels) if dual else (z, labels)


CALLS = {False: softmax_xent, True: dual_softmax_xent}


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_operators_are_registered_soundly(kind, dtype):
    torch.library.opcheck(torch.ops.fastdistill.softmax_xent.default, arguments_of(False, kind, dtype))
    torch.library.opcheck(torch.ops.fastdistill.dual_softmax_xent.default, arguments_of(True, kind, dtype))


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("dual", CALLS)
def test_public_functions_compile_whole(dual, kind):
    compiled = torch.compile(CALLS[dual], fullgraph=True, backend="aot_eager")
    arguments = arguments_of(dual, kind)
    for found, expected in zip(compiled(*arguments), CALLS[dual](*arguments), strict=True):
        assert found is expected is None or torch.equal(found, expected)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(*[argument.clone() for argument in arguments])


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("dual", CALLS)
def test_fake_tensors_have_the_true_shapes(dual, kind, dtype):
    arguments = arguments_of(dual, kind, dtype)
    truth = CALLS[dual](*arguments)
    with FakeTensorMode() as mode:
        found = CALLS[dual](*[mode.from_tensor(argument) for argument in arguments])
    for one, other in zip(found, truth, strict=True):
        assert one is other is None or (one.shape, one.dtype) == (other.shape, other.dtype)


# 2 · 3 · 5 · 10 = 300 logits
@pytest.mark.parametrize(
    ("dual", "kind", "flops"),
    [(False, "hard", 1800), (False, "soft", 3300), (True, "hard", 3000), (True, "soft", 5400)],
)
def test_operations_are_counted(dual, kind, flops):
    with FlopCounterMode(display=False) as counter:
        CALLS[dual](*arguments_of(dual, kind))
    assert counter.get_total_flops() == flops


def test_least_traffic():
    shape = (2, 3, 5, 10)
    assert cost_softmax_xent(shape, (1, 3, 5), 2, dual=False).bytes == 2 * 300 * 2 + 15 * 8
    assert cost_softmax_xent(shape, (1, 3, 5), 4, dual=True).bytes == 4 * 300 * 4 + 15 * 8
    assert cost_softmax_xent(shape, (1, 3, 5, 10), 4, dual=True).bytes == 5 * 300 * 4 + 150 * 4


@pytest.mark.parametrize("dual", CALLS)
def test_derivatives_are_refused(dual):
    for index in range(3 if dual else 2):
        arguments = list(arguments_of(dual, "soft"))
        with torch.autograd.forward_ad.dual_level():
            arguments[index] = torch.autograd.forward_ad.make_dual(arguments[index], torch.ones_like(arguments[index]))
            with pytest.raises(TypeError, match="softmax_xent expected a plain tensor, got a dual tensor"):
                CALLS[dual](*arguments)
        arguments = list(arguments_of(dual, "soft"))
        arguments[index].requires_grad_()
        with pytest.raises(TypeError, match="softmax_xent expected a plain tensor, got one that requires grad"):
            CALLS[dual](*arguments)


def test_wrong_arguments_are_named():
    z, dz, labels = make((2, 3, 5, 10), "soft")
    hard = make((2, 3, 5, 10), "hard")[2]
    for wrong in (z[0], z[..., :0]):
        with pytest.raises(ValueError, match=r"expected z \[S, G, n, C\] with at least one class, got"):
            softmax_xent(wrong, labels)
    with pytest.raises(ValueError, match=r"expected z in float32, bfloat16 or float64, got torch.float16"):
        softmax_xent(z.half(), labels.half())
    for wrong in (labels[:, :2], labels[:, :, :4], labels[..., 0], labels.expand(3, 2, 3, 5, 10), labels.new_ones(())):
        with pytest.raises(ValueError, match=r"expected labels .* or class indices in int64 = \[.*\], got"):
            softmax_xent(z, wrong)
    for wrong in (hard[:, :2], hard[:, :, :4], hard[..., None], hard[0]):
        with pytest.raises(ValueError, match=r"expected labels \[S or 1, G or 1, n\] = \[.*\], got"):
            softmax_xent(z, wrong)
    for wrong in (labels.float(), hard.int()):
        with pytest.raises(
            ValueError, match=r"expected labels like z in torch.float64 on cpu, got torch.(float|int)32"
        ):
            softmax_xent(z, wrong)
    for wrong in (labels.to("meta"), hard.to("meta")):
        with pytest.raises(ValueError, match=r"expected labels .*like z.* got .*meta"):
            softmax_xent(z, wrong)
    with pytest.raises(ValueError, match=r"dual_softmax_xent expected dz \[S, G, n, C\] = \[2, 3, 5, 10\], got"):
        dual_softmax_xent(z, dz[:1], labels)
    with pytest.raises(ValueError, match=r"dual_softmax_xent expected dz like z in torch.float64 on cpu"):
        dual_softmax_xent(z, dz.float(), labels)
