import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fastdistill_kernels import DISTANCES, RowTable, match
from fastdistill_kernels.gpu.launching import Launch
from fastdistill_kernels.match import LONGEST_ROW, cost_match
from tests.kernels.comparing import DTYPES, LIMITS, error

SHAPES = {"conv": (4, 3, 3, 3), "bias": (4,), "norm": (5, 2, 2), "linear": (7, 5)}


def layout():
    offsets, size = {}, 0
    for name, shape in SHAPES.items():
        offsets[name] = size
        size += -(-torch.Size(shape).numel() // 32) * 32
    return offsets, size


def gradients(*lead, seed=0):
    _, size = layout()
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*lead, size, generator=generator, dtype=torch.float64)


def table(distance, tensors=None):
    offsets, size = layout()
    return RowTable.build(SHAPES, offsets, size, distance, tensors)


def parts(flat, tensors):
    offsets, _ = layout()
    return [
        flat[offsets[name] : offsets[name] + torch.Size(SHAPES[name]).numel()].view(SHAPES[name]) for name in tensors
    ]


def textbook(a, b, distance, tensors):
    """One pair, tensor by tensor, row by row."""
    if distance == "l1_mean":
        both = zip(parts(a, tensors), parts(b, tensors), strict=True)
        return sum((x - y).abs().flatten(1).mean(1).sum() if x.ndim > 1 else (x - y).abs().sum() for x, y in both)
    if distance in ("mse", "l1"):
        power = 2 if distance == "mse" else 1
        return sum(((x - y).abs() ** power).sum() for x, y in zip(parts(a, tensors), parts(b, tensors), strict=True))
    if distance == "cos":
        x = torch.cat([part.flatten() for part in parts(a, tensors)])
        y = torch.cat([part.flatten() for part in parts(b, tensors)])
        return 1 - (x * y).sum() / (x.norm() * y.norm() + 1e-6)
    total = a.new_zeros(())
    for x, y in zip(parts(a, tensors), parts(b, tensors), strict=True):
        if x.ndim > 1:
            for row_x, row_y in zip(x.flatten(1), y.flatten(1), strict=True):
                total = total + 1 - (row_x * row_y).sum() / (row_x.norm() * row_y.norm() + 1e-6)
    return total


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("tensors", [None, ["conv"], ["bias", "linear"]])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_value_and_cotangent_equal_the_textbook(distance, tensors, lead):
    a, b = gradients(*lead, seed=1), gradients(*lead, seed=2)
    value, cotangent = match(a, b, table(distance, tensors), distance)
    chosen = tensors or list(SHAPES)
    for index in torch.cartesian_prod(*[torch.arange(n) for n in lead]).view(-1, len(lead)).tolist() if lead else [[]]:
        one = a[tuple(index)].clone().requires_grad_()
        expected = textbook(one, b[tuple(index)], distance, chosen)
        expected.backward()
        assert torch.allclose(value[tuple(index)], expected, rtol=1e-12, atol=0)
        assert torch.allclose(cotangent[tuple(index)], one.grad, rtol=1e-10, atol=1e-14)


def test_a_dead_row_gets_no_cotangent_and_counts_as_one():
    a, b = gradients(seed=1), gradients(seed=2)
    offsets, _ = layout()
    a[offsets["conv"] : offsets["conv"] + 27] = 0  # the first of four rows
    value, cotangent = match(a, b, table("ours", ["conv"]), "ours")
    rows = [part.flatten(1) for part in (parts(a, ["conv"])[0], parts(b, ["conv"])[0])]
    others = torch.nn.functional.cosine_similarity(rows[0][1:], rows[1][1:], dim=1)
    assert torch.allclose(value, 4 - others.sum(), rtol=1e-6)
    assert cotangent[offsets["conv"] : offsets["conv"] + 27].eq(0).all()
    assert cotangent.isfinite().all()


def test_a_dead_real_row_is_finite():
    a, b = gradients(seed=1), torch.zeros_like(gradients(seed=2))
    value, cotangent = match(a, b, table("ours"), "ours")
    assert float(value) == 4 + 5 + 7
    assert cotangent.eq(0).all()


def test_padding_takes_no_part():
    offsets, size = layout()
    a, b = gradients(seed=1), gradients(seed=2)
    for distance in DISTANCES:
        value, cotangent = match(a, b, table(distance), distance)
        used = torch.zeros(size, dtype=torch.bool)
        for name, shape in SHAPES.items():
            used[offsets[name] : offsets[name] + torch.Size(shape).numel()] = True
        changed, _ = match(torch.where(used, a, 9.0), b, table(distance), distance)
        assert torch.equal(value, changed)
        assert cotangent[~used].eq(0).all()


def test_wrong_input_is_named():
    a = gradients(2)
    with pytest.raises(ValueError, match="expected a distance among"):
        match(a, a, table("ours"), "cosine")
    with pytest.raises(ValueError, match="expected two gradients"):
        match(a, a[:, :-1], table("ours"), "ours")
    with pytest.raises(ValueError, match="expected tensors among"):
        table("ours", ["convolution"])
    with pytest.raises(ValueError, match="at least one tensor with rows"):
        table("ours", ["bias"])
    with pytest.raises(ValueError, match="within 32 parameters"):
        RowTable(((0, 4, 10),), 32)
    with pytest.raises(ValueError, match="one after another"):
        RowTable(((0, 2, 10), (8, 1, 4)), 32)
    with pytest.raises(ValueError, match="in float32, bfloat16 or float64, got"):
        match(a.long(), a.long(), table("ours"), "ours")
    with pytest.raises(ValueError, match="expected b like a in"):
        match(a, a.float(), table("ours"), "ours")
    with pytest.raises(TypeError, match="requires grad"):
        match(a.clone().requires_grad_(), a, table("ours"), "ours")
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(TypeError, match="dual tensor"),
    ):
        match(torch.autograd.forward_ad.make_dual(a, a), a, table("ours"), "ours")


def launched(a, b, rows, distance):
    """The kernel's results, interpreted where there is no GPU."""
    from fastdistill_kernels.gpu import match as gpu

    return gpu.match(a, b, rows.programs_on(distance, a.device), *axes(rows), distance)


def axes(rows):
    """Offsets, rows and columns of a table's segments."""
    return [[segment[axis] for segment in rows.segments] for axis in range(3)]


def check_kernel(rows, distance, lead, precision, device):
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(*lead, rows.size, generator=generator).to(DTYPES[precision]) for _ in range(2))
    truth = match(a.double(), b.double(), rows, distance)
    found = launched(a.to(device), b.to(device), rows, distance)
    assert found[0].dtype == torch.float32 and found[1].dtype == a.dtype
    assert error(found[0].cpu(), truth[0]) <= LIMITS[precision]
    # a cosine's cotangent is the difference of two terms of length 1/‖a‖ a row, nothing is left of them where a ∥ b
    difference = found[1].cpu().double() - truth[1]
    norm = max(truth[1].norm().item(), terms(a.double(), rows, distance))
    assert difference.norm().item() <= LIMITS[precision] * norm


def terms(a, rows, distance):
    """Length of the terms that a cosine's cotangent is the difference of; 0 for other distances."""
    if distance not in ("ours", "cos"):
        return 0.0
    shares = [a[..., o : o + r * c].unflatten(-1, (r, c)) for o, r, c in rows.segments if r]
    whole = [torch.cat([share.flatten(-2) for share in shares], -1)] if shares else []
    squares = [row.square().sum(-1) for row in (shares if distance == "ours" else whole)]
    return torch.cat([(1 / square).flatten() for square in squares]).sum().sqrt().item() if squares else 0.0


AWKWARD = {
    "one": RowTable(((0, 1, 1),), 1),
    "short rows": RowTable(((0, 5, 1), (7, 3, 2)), 19),
    "gaps": RowTable(((3, 2, 17), (64, 1, 31)), 101),
    "no row alive": RowTable(((5, 0, 3),), 40),
    "long gap": RowTable(((0, 1, 3),), LONGEST_ROW // 2 + 7),
    "longer than the chip": RowTable(((1, 2, LONGEST_ROW + 5),), 2 * LONGEST_ROW + 16),
    "no segment": RowTable((), 5),
    "no column": RowTable(((0, 3, 0), (2, 0, 7)), 6),
    "nothing": RowTable((), 0),
    "nothing but rows": RowTable(((0, 3, 0),), 0),
}


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", AWKWARD)
def test_the_kernel_equals_the_reference_on_awkward_tables(name, distance, device, poisoned):
    check_kernel(AWKWARD[name], distance, (2, 1), "float32", device)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("lead", [(), (0, 3), (3, 2)])
def test_the_kernel_equals_the_reference_in_every_precision(distance, precision, lead, device, poisoned):
    check_kernel(table(distance), distance, lead, precision, device)


@pytest.mark.parametrize("distance", DISTANCES)
def test_pairs_lie_as_far_apart_as_they_like(distance, device):
    from fastdistill_kernels.gpu import match as gpu

    generator = torch.Generator().manual_seed(3)
    near = [torch.randn(1, 3, 8, generator=generator).bfloat16().to(device) for _ in range(2)]
    expected = gpu.match(*near, torch.tensor([[0, 8, 8, 1]], device=device), [0], [1], [8], distance)
    # long gradients, whose memory is reserved: a table of one program reads and writes no more than its eight numbers
    start = 2**30
    spread = [torch.empty(1, 3, start + 8, dtype=torch.bfloat16, device=device) for _ in range(2)]
    for one, held in zip(near, spread, strict=True):
        held[..., start:] = one
    found = gpu.match(*spread, torch.tensor([[start, 8, 8, 1]], device=device), [start], [1], [8], distance)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1][..., start:], expected[1])


def test_a_dead_row_and_a_dead_pair_on_the_kernel(device, poisoned):
    a, b = gradients(2).float(), gradients(2, seed=1).float()
    offsets, _ = layout()
    a[0, offsets["conv"] : offsets["conv"] + 27] = 0
    a[1] = 0
    for distance in ("ours", "cos"):
        value, cotangent = launched(a.to(device), b.to(device), table(distance), distance)
        expected = match(a, b, table(distance), distance)
        assert torch.allclose(value.cpu(), expected[0], rtol=1e-5)
        assert torch.allclose(cotangent.cpu(), expected[1], atol=1e-6)
        assert cotangent[1].eq(0).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_what_is_no_number_shows_in_both(distance, device):
    a, b = gradients(2).float(), gradients(2, seed=1).float()
    offsets, _ = layout()
    a[0, offsets["conv"] + 5] = float("nan")
    found = launched(a.to(device), b.to(device), table(distance), distance)
    for value, cotangent in (found, match(a, b, table(distance), distance)):
        assert value[0].isnan() and value[1].isfinite()
        assert cotangent[0, offsets["conv"] + 5].isnan() and cotangent[1].isfinite().all()
        if distance in ("ours", "cos"):  # the whole row is spoilt, and says so
            assert cotangent[0, offsets["conv"] : offsets["conv"] + 27].isnan().all()


def test_a_long_gradients_products_are_added_up_once(device):
    size = 2048 * 520
    a, b = (torch.randn(1, size, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    rows = RowTable(((0, 520, 2048),), size)
    found = launched(a.to(device), b.to(device), rows, "cos")
    for ours, theirs in zip(found, match(a.double(), b.double(), rows, "cos"), strict=True):
        assert error(ours.cpu(), theirs) <= LIMITS["float32"]


def test_every_element_belongs_to_exactly_one_program():
    for distance in DISTANCES:
        for rows in (*AWKWARD.values(), table(distance)):
            seen = torch.zeros(rows.size, dtype=torch.int64)
            for offset, length, _, _ in rows.programs(distance):
                seen[offset : offset + length] += 1
            assert seen.eq(1).all()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", ["no segment", "no column", "nothing", "nothing but rows"])
def test_the_distance_of_nothing(name, distance, device, poisoned):
    rows = AWKWARD[name]
    a = torch.ones(2, rows.size)
    # a row of no columns counts as a dead one does
    expected = {"cos": 1.0, "ours": sum(count for _, count, _ in rows.segments if count < 7)}.get(distance, 0.0)
    for found in (match(a, a, rows, distance), launched(a.to(device), a.to(device), rows, distance)):
        assert found[0].tolist() == [expected, expected]
        assert found[1].shape == a.shape and found[1].eq(0).all()


class Sums(TorchDispatchMode):
    """Counts torch's sums."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket is torch.ops.aten.sum
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("distance", DISTANCES)
def test_one_launch_and_a_sum_or_two_for_the_global_cosine(distance, device, monkeypatch):
    kernels, run = [], Launch.run

    def noted(launch):
        kernels.append(launch.kernel.fn.__name__)
        run(launch)

    monkeypatch.setattr(Launch, "run", noted)
    a, b = (gradients(2, 3, seed=seed).float().to(device) for seed in (0, 1))
    with Sums() as sums:
        launched(a, b, table(distance), distance)
    expected = ["sums_kernel", "cotangent_kernel"] if distance == "cos" else ["rows_kernel"]
    assert kernels == expected and sums.count == (distance != "cos")


@pytest.mark.parametrize("distance", DISTANCES)
def test_programs_are_sent_to_a_device_once_and_stay_there(distance, device):
    rows, again = table(distance), table(distance)
    programs = rows.programs_on(distance, device)
    assert programs.tolist() == [list(program) for program in rows.programs(distance)]
    address = programs.data_ptr()
    del programs
    assert rows.programs_on(distance, device).data_ptr() == again.programs_on(distance, device).data_ptr() == address
    other = rows.programs_on("mse" if distance == "ours" else "ours", device)
    assert other.data_ptr() != address


def test_programs_are_plain_whatever_is_around_their_making():
    def made(size):
        return RowTable(((0, 2, 3),), size).programs_on("ours", torch.device("cpu"))

    kept = []
    torch.func.grad(lambda x: kept.append(made(6)) or x)(torch.ones(()))
    torch.func.vmap(lambda x: kept.append(made(7)) or x)(torch.ones(2))
    with torch.inference_mode():
        kept.append(made(8))
    for size, programs in zip((6, 7, 8), kept, strict=True):
        assert programs is made(size) and not programs.is_inference()
        assert programs.tolist() == [list(program) for program in RowTable(((0, 2, 3),), size).programs("ours")]
    with FakeTensorMode():
        assert isinstance(made(6), FakeTensor) and isinstance(made(9), FakeTensor)
    assert not isinstance(made(6), FakeTensor) and not isinstance(made(9), FakeTensor)


def test_programs_are_a_constant_of_what_is_compiled(monkeypatch):
    making, programs_of = [], RowTable.programs
    monkeypatch.setattr(RowTable, "programs", lambda *given: making.append(given) or programs_of(*given))

    def with_programs(a, b, rows):
        programs = rows.programs_on("l1", a.device)
        value, _ = torch.ops.fastdistill.match(a, b, programs, *axes(rows), "l1")
        return value, a.sum() + (programs * programs).sum()

    compiled = torch.compile(with_programs, fullgraph=True, backend="aot_eager")
    tables = [RowTable(((at, 2, 3 + at),), 20) for at in range(3)]
    a, b = (torch.randn(2, 20, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for rows in tables:  # numbers that change, of which Dynamo would make symbols
        for found, expected in zip(compiled(a, b, rows), with_programs(a, b, rows), strict=True):
            assert torch.equal(found, expected)
    assert len(making) == len(tables)
    equal = [RowTable(rows.segments, rows.size) for rows in tables]
    with torch.compiler.set_stance("fail_on_recompile"):
        for rows in equal:
            assert torch.equal(compiled(b, a, rows)[1], with_programs(b, a, rows)[1])
    assert len(making) == len(tables)


def test_pieces_of_pairs_change_no_bit():
    size = 1 << 16
    a, b = (torch.randn(9, size, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    rows = RowTable(((0, 64, 1000),), size)
    for distance in DISTANCES:
        value, cotangent = match(a, b, rows, distance)
        for index in range(9):
            one = match(a[index], b[index], rows, distance)
            assert torch.equal(value[index], one[0]) and torch.equal(cotangent[index], one[1])


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_operator_keeps_torchs_contract(distance):
    a, b, rows = gradients(2, 3).float(), gradients(2, 3, seed=1).float(), table(distance)
    for programs in (None, rows.programs_on(distance, a.device)):
        torch.library.opcheck(torch.ops.fastdistill.match.default, (a, b, programs, *axes(rows), distance))
    compiled = torch.compile(lambda a, b: match(a, b, rows, distance), fullgraph=True, backend="aot_eager")
    expected = match(a, b, rows, distance)
    assert all(torch.equal(*both) for both in zip(compiled(a, b), expected, strict=True))
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(b, a)


def test_shapes_are_known_without_values():
    rows = table("ours")
    match(gradients(2, 3), gradients(2, 3), rows, "ours")
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32)):
        with FakeTensorMode() as mode:
            a = mode.from_tensor(torch.ones(2, 3, rows.size, dtype=dtype))
            programs = rows.programs_on("ours", a.device)
            value, cotangent = torch.ops.fastdistill.match(a, a, programs, *axes(rows), "ours")
        assert value.shape == (2, 3) and value.dtype == wide
        assert cotangent.shape == a.shape and cotangent.dtype == dtype


def test_work_is_counted():
    a = gradients(2, 3)
    for distance, flops, passes in (("ours", 10, 3), ("l1", 4, 3), ("cos", 10, 5)):
        with FlopCounterMode(display=False) as counter:
            match(a, a, table(distance), distance)
        assert counter.get_total_flops() == flops * 6 * a.shape[-1]
        assert cost_match(6, a.shape[-1], 4, distance).bytes == passes * 6 * a.shape[-1] * 4
