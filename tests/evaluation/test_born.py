import torch

from fastdistill.config import RunConfig, StudentConfig
from fastdistill.evaluation.born import born_for
from fastdistill.students.ensemble import Ensemble

FIXED = StudentConfig(width=4, depth=2, initialization="fixed")


def ensemble(student):
    return Ensemble(student, (1, 8, 8), 3, seed=7, dtype=torch.float32)


def test_fresh_students_need_none():
    student = StudentConfig(width=4, depth=2)
    assert born_for(RunConfig(student=student), ensemble(student)) is None


def test_fixed_students_are_the_runs_own_in_turn():
    drawn = ensemble(FIXED)
    born = born_for(RunConfig(student=FIXED, runs=2, students=3), drawn)
    own = drawn.draw(0, torch.arange(6)).weights
    # four students of each of two runs, whatever indices they are judged under
    for first in (0, 1 << 31):
        weights, buffers = born(first + torch.arange(8))
        assert buffers == {}
        assert torch.equal(weights, own[[0, 1, 2, 0, 3, 4, 5, 3]])
