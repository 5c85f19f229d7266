import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastdistill.derivatives.layout import Layout
from fastdistill.draws import Purpose
from fastdistill.students.architectures import build_student
from fastdistill.students.weights import (
    DISTRIBUTIONS,
    draw_pretrained,
    initial_buffers,
    initial_weights,
    load_pretrained,
)


def student(norm="instance", width=16):
    return build_student("convnet", channels=3, height=16, width=16, num_classes=10, net_width=width, norm=norm)


def draw(distribution="default", students=8, step=0, module=None):
    return initial_weights(module or student(), distribution, seed=1, step=step, students=torch.arange(students))


# variance of a weight tensor with the fans of its layer
SPREAD = {
    "default": lambda fan_in, fan_out: 1 / (3 * fan_in),
    "xavier_normal": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "xavier_uniform": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "kaiming_fan_in": lambda fan_in, fan_out: 2 / fan_in,
    "kaiming_fan_out": lambda fan_in, fan_out: 2 / fan_out,
}


@pytest.mark.parametrize("distribution", SPREAD)
def test_weights_have_the_distributions_variance_and_bounds(distribution):
    module = student()
    weights = Layout.of(module).views(draw(distribution, students=32))
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            found = weights[f"{path}.weight"].double()
            area = math.prod(layer.weight.shape[2:])
            fan_in, fan_out = layer.weight.shape[1] * area, layer.weight.shape[0] * area
            expected = SPREAD[distribution](fan_in, fan_out)
            assert abs(found.var() / expected - 1) < 0.05
            assert abs(found.mean()) < 4 * math.sqrt(expected / found.numel())
            bias = weights[f"{path}.bias"]
            if distribution == "default":
                assert bias.abs().max() <= 1 / math.sqrt(fan_in)
                assert abs(bias.double().var() * 3 * fan_in - 1) < 0.3
                assert found.abs().max() <= 1 / math.sqrt(fan_in)
            else:
                assert bias.eq(0).all()
        elif isinstance(layer, nn.GroupNorm):
            assert weights[f"{path}.weight"].eq(1).all()
            assert weights[f"{path}.bias"].eq(0).all()


def test_orthogonal_weights_are_orthonormal():
    for name, tensor in Layout.of(student()).views(draw("orthogonal", students=3)).items():
        if tensor.ndim > 2:
            matrix = tensor.flatten(2).double()
            matrix = matrix if matrix.shape[1] <= matrix.shape[2] else matrix.mT
            eye = torch.eye(matrix.shape[1], dtype=torch.float64)
            assert torch.allclose(matrix @ matrix.mT, eye.expand(3, -1, -1), atol=1e-5), name


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_student_has_the_same_weights_in_any_batch(distribution):
    together = draw(distribution, students=5)
    alone = initial_weights(student(), distribution, seed=1, step=0, students=torch.tensor([3]))
    assert torch.equal(together[3], alone[0])
    assert not torch.equal(together[3], together[2])
    assert not torch.equal(draw(distribution, step=1), draw(distribution))


def test_purposes_give_other_weights():
    other = initial_weights(
        student(), "default", seed=1, step=0, students=torch.arange(8), purpose=Purpose.EVALUATION_WEIGHTS
    )
    assert not torch.equal(other, draw())


def test_padding_is_zero():
    layout = Layout.of(student(width=5))
    weights = draw(module=student(width=5))
    assert torch.equal(layout.flatten(layout.views(weights)), weights)


def test_buffers_start_fresh():
    module = student(norm="batch")
    buffers = initial_buffers(module, 3, dtype=torch.float64, device=torch.device("cpu"))
    assert set(buffers) == {name for name, _ in module.named_buffers()}
    for name, tensor in buffers.items():
        assert tensor.shape[0] == 3
        assert tensor.eq(1 if name.endswith("running_var") else 0).all()
        assert tensor.dtype == (torch.int64 if name.endswith("tracked") else torch.float64)


def test_pretrained_weights_are_drawn_from_a_folder(tmp_path):
    module = student()
    layout = Layout.of(module)
    pool = draw(students=3)
    for index in range(3):
        tensors = {name: view.contiguous() for name, view in layout.views(pool[index]).items()}
        save_file(tensors, tmp_path / f"net-{index}.safetensors")
    loaded, none = load_pretrained(tmp_path, module)
    assert torch.equal(loaded, pool)
    assert none == {}
    drawn, _ = draw_pretrained(loaded, none, seed=0, step=0, students=torch.arange(60))
    found = {next(i for i in range(3) if torch.equal(row, pool[i])) for row in drawn}
    assert found == {0, 1, 2}
    alone, _ = draw_pretrained(loaded, none, seed=0, step=0, students=torch.tensor([7]))
    assert torch.equal(alone[0], drawn[7])


def state(module, value):
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: torch.full(tensor.shape, value, dtype=tensor.dtype) for name, tensor in tensors.items()}


def test_pretrained_buffers_are_drawn_with_their_weights(tmp_path):
    module = student(norm="batch")
    for value in (1, 2, 3):
        save_file(state(module, value), tmp_path / f"net-{value}.safetensors")
    weights, buffers = load_pretrained(tmp_path, module)
    assert set(buffers) == {name for name, _ in module.named_buffers()} != set()
    weights, drawn = draw_pretrained(weights, buffers, seed=0, step=0, students=torch.arange(60))
    values = weights[:, 0]
    assert set(values.tolist()) == {1.0, 2.0, 3.0}
    for name, buffer in module.named_buffers():
        assert drawn[name].shape == (60, *buffer.shape)
        assert drawn[name].dtype == buffer.dtype
        assert torch.equal(drawn[name].view(60, -1).float(), values[:, None].expand(60, buffer.numel()))


def test_files_with_other_names_are_refused(tmp_path):
    module = student(norm="batch")
    tensors = state(module, 1)
    buffer = next(name for name, _ in module.named_buffers())
    save_file({name: tensor for name, tensor in tensors.items() if name != buffer}, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=f"expected {buffer} of shape .*, got nothing: pretrain"):
        load_pretrained(tmp_path, module)
    save_file(tensors | {"head.extra": torch.zeros(2)}, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"only the architecture's names in .*, got 'head\.extra': pretrain"):
        load_pretrained(tmp_path, module)


def test_wrong_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match="expected a weight distribution among"):
        draw("gaussian")
    with pytest.raises(ValueError, match="got none: put one file"):
        load_pretrained(tmp_path, student())
    save_file({"classifier.weight": torch.zeros(2, 2)}, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="pretrain the same architecture"):
        load_pretrained(tmp_path, student())

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(ValueError, match="scale of a Own"):
        draw(module=Own())


def test_damaged_files_are_refused(tmp_path):
    module = student()
    path = tmp_path / "net.safetensors"
    save_file(state(module, 1), path)
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"weights at .*net\.safetensors, got one that cannot be read .*: save it"):
            load_pretrained(tmp_path, module)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="got one that cannot be read"):
        load_pretrained(tmp_path, module)


def test_a_file_of_a_larger_network_is_refused_unread(tmp_path):
    save_file({"weight": torch.zeros(4_000_000)}, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"it has 16\d{6} bytes, this architecture at most"):
        load_pretrained(tmp_path, student())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
@pytest.mark.parametrize("kind", ["weight", "running_var"])
def test_weights_that_are_not_finite_are_refused(tmp_path, value, kind):
    tensors = state(student(norm="batch"), 1)
    name = next(name for name in tensors if name.endswith(kind))
    tensors[name] = tensors[name].double()
    tensors[name].view(-1)[-1] = value
    save_file(tensors, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=f"expected finite values in .*, got others in {name}"):
        load_pretrained(tmp_path, student(norm="batch"))


@pytest.mark.parametrize(("kind", "dtype"), [("weight", torch.int32), ("tracked", torch.float32), ("bias", torch.bool)])
def test_other_kinds_of_numbers_are_refused(tmp_path, kind, dtype):
    tensors = state(student(norm="batch"), 1)
    name = next(name for name in tensors if name.endswith(kind))
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=f"expected {name} in .* as .*, got {dtype}: convert it"):
        load_pretrained(tmp_path, student(norm="batch"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_width_become_float32(tmp_path, dtype):
    save_file({name: tensor.to(dtype) for name, tensor in state(student(), 0.5).items()}, tmp_path / "net.safetensors")
    weights, _ = load_pretrained(tmp_path, student())
    assert weights.dtype == torch.float32
    assert torch.equal(weights, Layout.of(student()).flatten(state(student(), 0.5))[None])
