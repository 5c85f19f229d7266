import torch
from safetensors.torch import save_file

from fastdistill.config import StudentConfig
from fastdistill.students.ensemble import Ensemble, student_module
from fastdistill.students.weights import draw_pretrained

SHAPE = (1, 8, 8)


def test_students_are_drawn_by_index_and_step():
    ensemble = Ensemble(StudentConfig(width=4, norm="batch"), SHAPE, 3, seed=2, dtype=torch.float64)
    students = ensemble.draw(5, torch.arange(6))
    assert students.weights.dtype == torch.float64
    part = students.some(slice(2, 4))
    again = ensemble.draw(5, torch.tensor([2, 3]))
    assert torch.equal(part.indices, again.indices)
    assert torch.equal(part.weights, again.weights)
    assert all(torch.equal(part.buffers[name], again.buffers[name]) for name in again.buffers)
    assert not torch.equal(ensemble.draw(6, torch.arange(6)).weights, students.weights)


def test_the_module_follows_the_configuration():
    module = student_module(StudentConfig(depth=2, width=5, norm="none", activation="swish"), SHAPE, 7)
    assert sum(p.numel() for p in module.parameters()) == (9 + 1) * 5 + (45 + 1) * 5 + (5 * 9 + 1) * 7
    assert all(p.is_meta for p in module.parameters())


def test_pretrained_students_come_from_files_with_their_statistics(tmp_path):
    module = student_module(StudentConfig(width=4, norm="batch"), SHAPE, 3)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for value in (1, 2):
        content = {name: torch.full(tensor.shape, value, dtype=tensor.dtype) for name, tensor in tensors.items()}
        save_file(content, tmp_path / f"{value}.safetensors")
    config = StudentConfig(width=4, norm="batch", initialization="pretrained", pretrained=str(tmp_path))
    ensemble = Ensemble(config, SHAPE, 3, seed=0, dtype=torch.float64)
    students = ensemble.draw(0, torch.arange(20))
    values = students.weights[:, 0]
    assert students.weights.dtype == torch.float64
    assert set(values.tolist()) == {1.0, 2.0}
    assert students.buffers
    for name, tensor in students.buffers.items():
        assert tensor.dtype == (torch.int64 if name.endswith("tracked") else torch.float64)
        assert torch.equal(tensor.view(20, -1).double(), values[:, None].expand(20, tensor[0].numel()))
    assert torch.equal(ensemble.draw(0, torch.tensor([7])).weights[0], students.weights[7])
    assert not torch.equal(ensemble.draw(1, torch.arange(20)).weights, students.weights)


def test_the_pool_is_copied_to_its_device_once(tmp_path, monkeypatch):
    module = student_module(StudentConfig(width=4, norm="batch"), SHAPE, 3)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    save_file({name: torch.zeros(t.shape, dtype=t.dtype) for name, t in tensors.items()}, tmp_path / "net.safetensors")
    config = StudentConfig(width=4, norm="batch", initialization="pretrained", pretrained=str(tmp_path))
    # float64 stands for another device: a copy is needed at the first draw, and at no later one
    ensemble = Ensemble(config, SHAPE, 3, seed=0, dtype=torch.float64)
    pools = []

    def seen(weights, buffers, **draw):
        pools.append([weights, *buffers.values()])
        return draw_pretrained(weights, buffers, **draw)

    monkeypatch.setattr("fastdistill.students.ensemble.draw_pretrained", seen)
    for step in range(2):
        ensemble.draw(step, torch.arange(3))
    assert all(first is second for first, second in zip(*pools, strict=True))
    assert pools[0][0].dtype == torch.float64
