import pytest
import torch

from fastdistill_kernels import DISTANCES, RowTable, match

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
    with pytest.raises(ValueError, match="must lie within"):
        RowTable(((0, 4, 10),), 32)
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(TypeError, match="dual tensor"),
    ):
        match(torch.autograd.forward_ad.make_dual(a, a), a, table("ours"), "ours")
