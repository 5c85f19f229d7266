import dataclasses

import pytest
import torch
from torch.nn import functional as F

from bench.gpu import kernels
from bench.kernel_cases import CONVNET, SMALL, all_cases, rounded
from fastdistill_kernels.roofline import Recorder

CPU = torch.device("cpu")
CASES = {case.name: case for case in all_cases()}
L2 = 50e6  # bytes, of an H200


def test_every_operator_is_measured():
    found = set()
    for case in CASES.values():
        operands, _ = rounded(case, SMALL, "float32", CPU)
        with kernels.Captured() as captured:
            kernels.called(case, operands, "float32")
        for operator, arguments in captured.calls:
            kernels.reference_of(operator)(*arguments)  # which is its path on a CPU
            found.add(operator)
    names = [name.partition("fastdistill::")[2] for name in torch._C._dispatch_get_all_op_names()]
    assert found == {name for name in names if name and not name.startswith("test_")}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.separate is not None])
def test_separate_calls_compute_the_same(name):
    case = CASES[name]
    _, exact = rounded(case, SMALL, "float32", CPU)
    ours = kernels._tensors(kernels.called(case, exact, "float32"))
    for layout, calls in case.calls(exact):
        theirs = kernels._tensors(case.separate.unfold(calls(), exact))
        assert [one.shape for one in theirs] == [one.shape for one in ours[: len(theirs)]], layout
        # an operator may return more, such as statistics
        assert all(kernels._apart(one, other) <= 1e-6 for one, other in zip(ours, theirs, strict=False)), layout
    assert all(torch.equal(*pair) for pair in zip(exact, rounded(case, SMALL, "float32", CPU)[1], strict=True))


def test_convolutions_are_tried_in_both_layouts():
    for name in [name for name in CASES if "convolution" in name]:
        operands, _ = rounded(CASES[name], SMALL, "float32", CPU)
        maps = {layout: calls.args[0] for layout, calls in CASES[name].calls(operands)}
        assert maps["contiguous_format"].is_contiguous()
        assert maps["channels_last"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", CASES)
def test_what_a_case_moves_is_beyond_the_cache(name):
    def numbers(*shape):
        return torch.empty(*shape, device="meta")

    case = CASES[name]
    with Recorder() as recorder:
        kernels.called(case, case.operands(CONVNET, numbers), "float32")
    assert sum(call.cost.bytes for call in recorder.calls) >= 4 * L2


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_no_small_operand_is_so_near_a_kink_that_rounding_crosses_it(precision):
    places = {
        "norm_act_pool": (0, 1, 2),
        "norm_act_pool_backward": (1, 2, 3),
        "dual_norm_act_pool": (0, 2, 4),
        "dual_norm_act_pool_backward": (2, 4, 6),
        "first_block": (0, 1, 2, 3, 4),
        "first_block_backward": (1, 2, 3, 4, 5),
        "dual_first_block": (0, 1, 3, 5, 7),
        "dual_first_block_backward": (2, 3, 5, 7, 9),
    }
    assert list(places) == [name for name, case in CASES.items() if case.smooth]
    for name, at in places.items():
        _, exact = rounded(CASES[name], SMALL, precision, CPU)
        images, *layer, weight, bias = (exact[place] for place in at)
        for student in range(SMALL.students):
            maps = images[student].flatten(0, 1)
            if layer:
                maps = F.conv2d(maps, *(each[student] for each in layer), padding=1)
            z = F.group_norm(maps, SMALL.channels, weight[student], bias[student])
            assert z.abs().min() > 3e-6, name


def without_machine(monkeypatch, cases):
    monkeypatch.setattr(kernels, "all_cases", lambda: cases)
    monkeypatch.setattr(kernels, "describe_machine", lambda device: {"peaks": {"matmul_float32_flops_per_s": 1.0}})


def run(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["kernels", "--device", "cpu", "--budget", "0", "--out", str(tmp_path / "kernels")])
    return kernels.main()


def test_a_wrong_kernel_is_named_and_not_timed(monkeypatch, tmp_path, capsys):
    case = CASES["match-mse"]
    without_machine(monkeypatch, [case])
    monkeypatch.setattr(kernels, "error", lambda case, precision, device: 1.0)
    assert run(monkeypatch, tmp_path) == 1
    assert "match-mse/float32: wrong" in capsys.readouterr().err
    assert "seconds" not in (tmp_path / "kernels.json").read_text()


# results of a layer's backward pass: the gradient of the maps, and those of the affine, which are 100 times smaller
@pytest.mark.parametrize("result", [0, 2])
@pytest.mark.parametrize("student", [0, SMALL.students - 1])
def test_one_wrong_result_of_large_operands_does_not_hide_behind_others(monkeypatch, tmp_path, capsys, result, student):
    case = CASES["norm_act_pool_backward"]

    def spoiled(*operands, **options):
        found = [one.clone() for one in case.smooth(*operands, **options)]
        if len(found[0]) == SMALL.students and operands[0].dtype != torch.float64:
            found[result][student] *= 1.001
        return tuple(found)

    without_machine(monkeypatch, [dataclasses.replace(case, precisions=("float32",), smooth=spoiled)])
    assert run(monkeypatch, tmp_path) == 1
    assert "norm_act_pool_backward/float32: wrong at full size" in capsys.readouterr().err
    assert "seconds" not in (tmp_path / "kernels.json").read_text()


def test_the_faster_layout_counts_and_what_fails_is_part_of_the_result(monkeypatch):
    case = CASES["convolution"]
    operands, _ = rounded(case, SMALL, "float32", CPU)
    times = iter([2.0, 1.0])
    monkeypatch.setattr(kernels, "seconds", lambda *_: next(times))
    found = kernels.separate_seconds(case, operands, CPU, 0.0)
    assert found == {"contiguous_format": 2.0, "channels_last": 1.0}

    def fold(operands, layout):
        raise RuntimeError("too large")

    broken = dataclasses.replace(case, separate=dataclasses.replace(case.separate, fold=fold))
    assert kernels.separate_seconds(broken, operands, CPU, 0.0) == {"folding": "RuntimeError: too large"}


def test_nothing_that_is_not_a_number_passes():
    assert kernels.farthest([torch.tensor([float("nan")])], [torch.ones(1)]) == float("inf")
    assert kernels.farthest([torch.tensor([3.0])], [torch.tensor([2.0])]) == 0.5
    assert kernels.farthest([torch.ones(9), torch.tensor([3])], [torch.ones(9), torch.tensor([2])]) == 0.5


def test_students_at_the_ends_have_their_share_of_everything():
    assert kernels.ends(torch.arange(6).view(3, 2), 3).tolist() == [[0, 1], [4, 5]]
    assert kernels.ends(torch.arange(6).view(2, 3, 1), 3).tolist() == [[[0], [2]], [[3], [5]]]  # Adam's moments


def test_a_reference_that_nobody_wrote_is_named():
    with pytest.raises(LookupError, match="expected a reference named convolute"):
        kernels.reference_of("convolute")


def test_costs_are_those_of_the_operands():
    case = CASES["momentum_step"]
    operands, _ = rounded(case, SMALL, "float32", CPU)
    with Recorder() as recorder:
        kernels.called(case, operands, "float32")
    [call] = recorder.calls
    assert call.cost.bytes == 4 * SMALL.students * (5 * SMALL.vector + 2)
