import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from bench.naive.augmentation import diff_augment
from fastdistill_kernels.dsa import LONGEST, OPERATIONS, cost_dsa, dsa, dsa_transpose
from fastdistill_kernels.reference import dsa as reference
from tests.kernels.any_shape import given, settings, st
from tests.kernels.comparing import DTYPES, LIMITS, error, far

EDGE = 1 - 2.0**-24  # the largest number that `uniform` draws
CODES = list(range(len(OPERATIONS)))
# [D, H, W]; an extent of one is special with align_corners, long thin images have the widest windows
AWKWARD = [(1, 1, 1), (2, 1, 7), (3, 7, 1), (3, 2, 40), (1, 40, 2), (5, 9, 9), (1, 3, 17), (3, 28, 13), (2, 6, 10)]
THIN = [(1, 1, 9), (2, 9, 1), (1, 2, 33), (1, 33, 2)]
BOTH = pytest.mark.parametrize("align_corners", [True, False])

# affine_grid, which only the textbook uses, says so of extents of one
pytestmark = pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid:UserWarning")


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def drawn(students, groups, rows, seed=0, of=6):
    generator = torch.Generator().manual_seed(seed)
    operation = torch.randperm(students * groups, generator=generator).remainder(of).view(students, groups)
    return operation, torch.rand(students, groups, rows, 3, generator=generator)


def textbook(images, operation, parameters, names, align_corners):
    """Image by image, operation by operation."""
    out = []
    for pair, index in enumerate(operation.flatten().tolist()):
        own = images.flatten(0, 1)[pair]
        rows = parameters.flatten(0, 1)[pair].to(images.dtype).expand(own.shape[0], -1)
        parts = [
            diff_augment(own[i : i + 1], names[index], rows[i], align_corners=align_corners) for i in range(len(own))
        ]
        out.append(torch.cat(parts))
    return torch.stack(out).view(*operation.shape, *images.shape[2:])


@BOTH
@pytest.mark.parametrize("shape", AWKWARD)
@pytest.mark.parametrize("rows", [1, 2])
def test_the_reference_and_its_transpose_equal_the_textbook_and_autograd(shape, rows, align_corners):
    operation, parameters = drawn(3, 4, rows, seed=1)
    parameters[0, 0], parameters[-1, -1] = 0, EDGE
    images, cotangent = numbers(3, 4, 2, *shape).requires_grad_(), numbers(3, 4, 2, *shape, seed=1)
    expected = textbook(images, operation, parameters, OPERATIONS, align_corners)
    (pulled,) = torch.autograd.grad(expected, images, cotangent)
    found = dsa(images.detach(), operation, parameters, OPERATIONS, align_corners=align_corners)
    back = dsa_transpose(cotangent, operation, parameters, OPERATIONS, align_corners=align_corners)
    assert (found - expected).abs().max() <= 1e-12
    assert (back - pulled).abs().max() <= 1e-12


@BOTH
@pytest.mark.parametrize("name", ["scale", "rotate"])
def test_a_position_gathers_from_three_lines_of_three(name, align_corners):
    """What the kernel's window rests on, counted in every position of every image up to 12×12, and of long ones."""
    from fastdistill_kernels.gpu.dsa import aspects

    extents = [(h, w) for h in range(1, 13) for w in range(1, 13)] + [(2, 64), (64, 2), (1, 64), (3, 50), (50, 3)]
    matrices = []
    for u, v in ((0.0, 0.0), (EDGE, EDGE), (0.0, EDGE), (0.37, 0.81)):
        low, span, angle = 1 / 1.2, 1.2 - 1 / 1.2, (u - 0.5) * math.pi / 6
        scaled = (low + u * span, 0.0, low + v * span)
        matrices.append(scaled if name == "scale" else (math.cos(angle), math.sin(angle), math.cos(angle)))
    for height, width in extents:
        aspect, slant = aspects(height, width, align_corners)
        y, x = torch.meshgrid(
            *(torch.arange(e, dtype=torch.float64) - (e - 1) / 2 for e in (height, width)), indexing="ij"
        )
        for xx, slanted, yy in matrices:
            at_y, at_x = slanted * slant * x + yy * y, xx * x - slanted * aspect * y
            near = ((at_y - y[:, :, None, None]).abs() < 1 - 1e-9) & ((at_x - x[:, :, None, None]).abs() < 1 - 1e-9)
            lines = near if height <= width else near.transpose(2, 3)
            assert lines.any(-1).sum(-1).max() <= 3 and lines.sum(-1).max() <= 3


def compare(images, operation, parameters, align_corners, precision, device, codes=CODES):
    """The kernel, interpreted where there is no GPU, against the reference in float64, both ways."""
    from fastdistill_kernels.gpu import dsa as gpu

    images, arguments = images.to(DTYPES[precision]), (operation, parameters)
    placed = [tensor.to(device) for tensor in arguments]
    for kernel, truth in ((gpu.dsa, reference.dsa), (gpu.dsa_transpose, reference.dsa_transpose)):
        found = kernel(images.to(device), *placed, codes, align_corners)
        assert found.dtype == images.dtype and found.is_contiguous()
        assert error(found.cpu(), truth(images.double(), *arguments, codes, align_corners)) <= LIMITS[precision]


@BOTH
@pytest.mark.parametrize("shape", AWKWARD)
def test_the_kernel_equals_the_reference_on_awkward_images(shape, align_corners, device, poisoned):
    operation, parameters = drawn(1, 6, 1, seed=2)
    compare(numbers(1, 6, 1, *shape), operation, parameters, align_corners, "float32", device)


EXTREMES = [
    *((name, (3, 8, 8), True) for name in OPERATIONS),
    *((name, shape, align) for name in ("scale", "rotate") for shape in THIN for align in (True, False)),
]


@pytest.mark.parametrize(("name", "shape", "align_corners"), EXTREMES)
def test_the_kernel_equals_the_reference_at_the_extremes(name, shape, align_corners, device, poisoned):
    ends = torch.tensor([[0.0, 0, 0], [EDGE, EDGE, EDGE], [0, EDGE, 0.5], [EDGE, 0, 0.5]])
    operation = torch.full((1, 1), OPERATIONS.index(name))
    # each by itself, lest a wrong one hide behind the others' norm
    for row in ends:
        compare(numbers(1, 1, 1, *shape), operation, row.view(1, 1, 1, 3), align_corners, "float32", device)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_kernel_equals_the_reference_in_every_precision(precision, rows, device, poisoned):
    operation, parameters = drawn(2, 3, rows, seed=3)
    compare(numbers(2, 3, 3, 3, 9, 12), operation, parameters, True, precision, device)


@pytest.mark.parametrize("lead", [(1, 4), (2, 1), (1, 1)])
def test_images_that_pairs_share_are_read_where_they_lie(lead, device, poisoned):
    from fastdistill_kernels.gpu.dsa import prepare_dsa

    operation, parameters = drawn(2, 4, 1, seed=4)
    images = numbers(*lead, 1, 2, 7, 7)
    compare(images, operation, parameters, True, "float32", device)
    spread = images.expand(2, 4, 1, 2, 7, 7)
    compare(spread, operation, parameters, True, "float32", device)
    placed = (spread.to(device), operation.to(device), parameters.to(device))
    _, (launch, *_) = prepare_dsa(*placed, CODES, True, transpose=False)
    assert launch.arguments["p_images"].data_ptr() == placed[0].data_ptr()
    whole = dsa(spread.contiguous(), operation, parameters, OPERATIONS, align_corners=True)
    for shared in (images, spread):
        assert torch.equal(dsa(shared, operation, parameters, OPERATIONS, align_corners=True), whole)


def test_any_strides_are_taken(device, poisoned):
    operation, parameters = drawn(2, 3, 2, seed=5)
    operation = operation.t().contiguous().t()
    wide = torch.zeros(2, 3, 2, 5)
    wide[..., 1:4] = parameters
    for images in (
        numbers(2, 3, 2, 8, 6, 3).movedim(-1, 3),  # channels last
        numbers(3, 2, 2, 3, 6, 8).transpose(0, 1).transpose(4, 5),
        numbers(2, 3, 2, 3, 8, 12)[..., ::2],
        numbers(2, 3, 1, 1, 1, 1).expand(2, 3, 2, 3, 8, 6),
    ):
        compare(images, operation, wide[..., 1:4], False, "float32", device)


def test_students_lie_as_far_apart_as_they_like(device):
    from fastdistill_kernels.gpu import dsa as gpu

    images = numbers(3, 1, 1, 2, 5, 4, dtype=torch.bfloat16).to(device)
    operation, parameters = (one.to(device) for one in drawn(3, 1, 1, seed=6))
    expected = gpu.dsa(images, operation, parameters, CODES, True)
    assert torch.equal(gpu.dsa(far(images), operation, parameters, CODES, True), expected)


def test_an_index_outside_the_list_changes_nothing(device, poisoned):
    operation, parameters = torch.tensor([[-1, 2, 20], [21, -(2**40), 2**40]]), drawn(2, 3, 1)[1]
    images = numbers(2, 3, 2, 2, 5, 5)
    for apply in (dsa, dsa_transpose):
        assert torch.equal(apply(images, operation, parameters, ("flip", "crop"), align_corners=True), images)
        assert torch.equal(apply(images, operation, parameters, (), align_corners=True), images)
    compare(images, operation, parameters, True, "float32", device, [3, 1])
    compare(images, operation, parameters, True, "float32", device, [])


def test_a_list_may_name_an_operation_twice_and_be_long(device, poisoned):
    codes = [CODES[place % 6] for place in range(LONGEST)]
    operation, parameters = drawn(5, 4, 1, of=LONGEST)
    compare(numbers(5, 4, 1, 1, 6, 6), operation, parameters, True, "float32", device, codes)


@pytest.mark.parametrize("sizes", [(0, 3, 2, 1, 4, 4), (2, 3, 0, 1, 4, 4), (2, 3, 2, 0, 4, 4), (2, 3, 2, 1, 4, 0)])
def test_empty_axes_give_empty_images(sizes, device):
    operation, parameters = drawn(*sizes[:2], 1)
    compare(numbers(*sizes), operation, parameters, True, "float32", device)


@pytest.mark.parametrize("programs", [1, 15])
def test_images_may_take_many_steps_or_be_shared_out(programs, device, poisoned, monkeypatch):
    from fastdistill_kernels.gpu import dsa as gpu

    monkeypatch.setattr(gpu, "_PROGRAMS", programs)
    assert gpu.blocks(6, 3, 29 * 21)[2:4] == ((1, 5) if programs == 1 else (2, 3))
    operation, parameters = drawn(1, 6, 1, seed=6)
    compare(numbers(1, 6, 1, 3, 29, 21), operation, parameters, True, "float32", device)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(*[st.integers(1, 3)] * 3, st.integers(1, 4), st.integers(1, 20), st.integers(1, 20)),
    siamese=st.booleans(),
    align_corners=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_kernel_equals_the_reference_on_any_images(sizes, siamese, align_corners, seed):
    operation, parameters = drawn(*sizes[:2], 1 if siamese else sizes[2], seed)
    compare(numbers(*sizes, seed=seed) + 1, operation, parameters, align_corners, "float32", "cpu")


def test_the_transpose_is_the_kernels_own(device):
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩, without the reference; brightness is not linear and stays in the middle."""
    from fastdistill_kernels.gpu import dsa as gpu

    operation, parameters = drawn(2, 6, 1, seed=7)
    parameters[operation == 0, :, 0] = 0.5
    x, y = (numbers(2, 6, 1, 3, 11, 8, seed=seed, dtype=torch.float32).to(device) for seed in (1, 2))
    arguments = (operation.to(device), parameters.to(device), CODES, False)
    there, back = (gpu.dsa(x, *arguments).double() * y).sum(), (gpu.dsa_transpose(y, *arguments).double() * x).sum()
    assert abs(there - back) <= 1e-5 * x.norm() * y.norm()


def test_pieces_of_pairs_change_no_bit(monkeypatch):
    operation, parameters = drawn(3, 6, 1, seed=8)
    images = numbers(3, 6, 2, 3, 9, 9, dtype=torch.float32)
    for apply in (dsa, dsa_transpose):
        monkeypatch.setattr(reference, "_PIECE", 1 << 20)
        together = apply(images, operation, parameters, OPERATIONS, align_corners=True)
        monkeypatch.setattr(reference, "_PIECE", 1)
        assert torch.equal(apply(images, operation, parameters, OPERATIONS, align_corners=True), together)


def test_narrow_images_are_rounded_once():
    operation, parameters = drawn(2, 6, 1, seed=9)
    images = numbers(2, 6, 2, 3, 9, 9, dtype=torch.bfloat16)
    for apply in (dsa, dsa_transpose):
        wide = apply(images.float(), operation, parameters, OPERATIONS, align_corners=True)
        assert torch.equal(apply(images, operation, parameters, OPERATIONS, align_corners=True), wide.bfloat16())


@pytest.mark.parametrize("apply", [dsa, dsa_transpose])
def test_the_operator_keeps_torchs_contract(apply):
    operation, parameters = drawn(2, 3, 1)
    images = numbers(2, 3, 2, 1, 6, 5, dtype=torch.float32)
    operator = getattr(torch.ops.fastdistill, apply.__name__).default
    torch.library.opcheck(operator, (images, operation, parameters, CODES, True))

    def call(images, operation, parameters):
        return apply(images, operation, parameters, OPERATIONS, align_corners=True)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images, operation, parameters), call(images, operation, parameters))
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(images + 1, operation + 1, parameters)


def test_shapes_are_known_without_values():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        with FakeTensorMode():
            images = torch.empty(1, 3, 5, 2, 8, 6, dtype=dtype)
            operation, parameters = torch.empty(4, 3, dtype=torch.int64), torch.empty(4, 3, 1, 3)
            for apply in (dsa, dsa_transpose):
                found = apply(images, operation, parameters, OPERATIONS, align_corners=True)
                assert found.shape == (4, 3, 5, 2, 8, 6) and found.dtype == dtype and found.is_contiguous()


def test_work_is_counted():
    operation, parameters = drawn(2, 3, 1)
    images = numbers(2, 3, 4, 3, 5, 7)
    # 840 pixels of three channels: color 12, scale and rotate 21 or 51, three others nothing, each a sixth: 9 or 19
    for apply, flops in ((dsa, 7560), (dsa_transpose, 15960)):
        with FlopCounterMode(display=False) as counter:
            apply(images, operation, parameters, OPERATIONS, align_corners=True)
        assert counter.get_total_flops() == flops
    assert cost_dsa(OPERATIONS, 1, 1, 1, 7, 7, 4).flops == 49 * 3  # not 20/6 of 49: parts add up to the whole
    assert cost_dsa(OPERATIONS, 6, 4, 3, 5, 7, 2).bytes == 2 * 2 * 2520
    assert cost_dsa(OPERATIONS, 6, 4, 3, 5, 7, 2, read=3).bytes == 2 * 2520 + 2520


def test_wrong_input_is_named():
    operation, parameters = drawn(2, 3, 1)
    images = numbers(2, 3, 4, 1, 5, 5, dtype=torch.float32)

    def call(images=images, operation=operation, parameters=parameters, operations=OPERATIONS, apply=dsa):
        return apply(images, operation, parameters, operations, align_corners=True)

    cases = [
        ({"operations": ("color", "blur")}, "dsa expected operations among color, .*, got 'blur'"),
        ({"operations": ("flip",) * 21}, "dsa expected at most 20 operations, got 21"),
        ({"operation": operation.int()}, r"dsa expected operation \[S, G\] in int64, got \[2, 3\] torch.int32"),
        ({"operation": operation[0]}, r"dsa expected operation \[S, G\] in int64, got \[3\]"),
        ({"images": images[0]}, r"expected images \[2 or 1, 3 or 1, n, D, H, W\], got \[3, 4, 1, 5, 5\]"),
        ({"images": images[:, :2]}, r"expected images \[2 or 1, 3 or 1, n, D, H, W\], got \[2, 2, 4"),
        ({"images": images[:, :2], "apply": dsa_transpose}, r"dsa_transpose expected cotangent \[2 or 1, 3 or 1"),
        ({"images": images.half()}, "expected images in float32, bfloat16 or float64, got torch.float16"),
        ({"parameters": parameters[..., :2]}, r"expected parameters \[S, G, 1 or n, 3\] = \[2, 3, 1, 3\], got"),
        ({"parameters": parameters.expand(2, 3, 3, 3)}, r"= \[2, 3, 1, 3\], got \[2, 3, 3, 3\]"),
        ({"parameters": parameters.double()}, "float64 for images in float64, got torch.float64 for torch.float32"),
        ({"parameters": parameters.to("meta")}, "expected parameters on cpu like images, got meta"),
        ({"operation": operation.to("meta")}, "expected operation on cpu like images, got meta"),
    ]
    for arguments, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            call(**arguments)
    for apply in (dsa, dsa_transpose):
        with pytest.raises(TypeError, match=f"{apply.__name__} expected a plain tensor, got one that requires grad"):
            call(images=images.clone().requires_grad_(), apply=apply)
        with torch.autograd.forward_ad.dual_level(), pytest.raises(TypeError, match="dual tensor"):
            call(images=torch.autograd.forward_ad.make_dual(images, images), apply=apply)
