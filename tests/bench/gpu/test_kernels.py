import dataclasses

import pytest
import torch

from bench.gpu import kernels
from bench.kernel_cases import SMALL, all_cases, rounded
from fastdistill_kernels.roofline import Recorder

CPU = torch.device("cpu")
CASES = {case.name: case for case in all_cases()}


@pytest.mark.parametrize("name", CASES)
def test_a_case_has_a_reference_for_every_operator_it_calls(name):
    operands, _ = rounded(CASES[name], SMALL, "float32", CPU)
    with kernels.Captured() as captured:
        kernels.called(CASES[name], operands, "float32")
    assert captured.calls
    for operator, arguments, found in captured.calls:
        again = kernels.reference_of(operator)(*arguments)
        assert kernels._apart(kernels._tensors(again), kernels._tensors(found)) == 0


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.separate is not None])
def test_separate_calls_compute_the_same(name):
    case = CASES[name]
    _, exact = rounded(case, SMALL, "float32", CPU)
    found, other = (
        kernels._tensors(compute) for compute in (kernels.called(case, exact, "float32"), case.separate(*exact))
    )
    for ours, theirs in zip(found, other, strict=False):  # an operator may return more, such as statistics
        assert ours.shape == theirs.shape
        assert kernels._apart([ours], [theirs]) <= 1e-6


def test_a_wrong_kernel_is_named_and_not_timed(monkeypatch, tmp_path, capsys):
    case = CASES["match-mse"]
    wrong = dataclasses.replace(case, operator=lambda a, b: (a.float().sum(-1), b))
    monkeypatch.setattr(kernels, "all_cases", lambda: [wrong])
    monkeypatch.setattr("sys.argv", ["kernels", "--device", "cpu", "--out", str(tmp_path / "kernels")])
    monkeypatch.setattr(kernels, "describe_machine", lambda device: {"peaks": {"copy_bytes_per_s": 1.0}})
    monkeypatch.setattr(kernels, "error", lambda case, precision, device: 1.0)
    assert kernels.main() == 1
    assert "match-mse/float32: wrong" in capsys.readouterr().err
    assert "seconds" not in (tmp_path / "kernels.json").read_text()


def test_nothing_that_is_not_a_number_passes():
    assert kernels._apart([torch.tensor([float("nan")])], [torch.ones(1)]) == float("inf")
    assert kernels._apart([torch.tensor([3.0])], [torch.tensor([2.0])]) == 0.5


def test_a_reference_that_nobody_wrote_is_named():
    with pytest.raises(LookupError, match="expected a reference named convolute"):
        kernels.reference_of("convolute")


def test_costs_are_those_of_the_operands():
    case = CASES["match-ours"]
    operands, _ = rounded(case, SMALL, "float32", CPU)
    with Recorder() as recorder:
        kernels.called(case, operands, "float32")
    [call] = recorder.calls
    pairs = SMALL.students * SMALL.groups
    assert call.cost.bytes == 4 * pairs * (3 * SMALL.parameters + 1)
