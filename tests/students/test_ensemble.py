import torch

from fastdistill.config import StudentConfig
from fastdistill.students.ensemble import Ensemble, student_module

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
