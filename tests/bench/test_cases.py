import pytest
import torch

from bench.cases import Case, computing, family

CPU = torch.device("cpu")


def make(*_):
    return lambda: None


def case(**changes):
    values = {"group": "g", "problem": "p", "engine": "functional", "students": 4, "images": 7, "make": make}
    return Case(**{**values, **changes})


def test_names_say_everything_that_distinguishes_a_case():
    assert case().name == "g/p/functional/S4"
    assert case(precision="tf32").name == "g/p/functional-tf32/S4"
    assert case().yardstick == "g/p/naive/S1"
    assert case(precision="tf32").yardstick == "g/p/naive-tf32/S1"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": "fast"}, "expected an engine of naive"),
        ({"precision": "fp8"}, "and a precision of float32"),
        ({"engine": "naive"}, "expected one student of the textbook, got 4"),
    ],
)
def test_wrong_cases_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        case(**changes)


def test_a_family_has_the_textbook_and_every_number_of_students():
    asked = []

    def engine(students, name, device):
        asked.append((students, name, device))
        return make()

    found = family(
        "g",
        "p",
        images=3,
        naive=make,
        engine=engine,
        students=(1, 16),
        short=(16,),
        compiled=(16,),
        short_compiled=(16,),
        dual=(1, 16),
        short_dual=(16,),
        dual_compiled=(16,),
    )
    assert [case.name for case in found] == [
        "g/p/naive/S1",
        "g/p/functional/S1",
        "g/p/functional/S16",
        "g/p/compiled/S16",
        "g/p/dual/S1",
        "g/p/dual/S16",
        "g/p/dual-compiled/S16",
    ]
    assert [case.short for case in found] == [True, False, True, True, False, True, False]
    assert [case.compiled for case in found] == [False, False, False, True, False, False, True]
    found[3].make(CPU)
    assert asked == [(16, "compiled", CPU)]


def test_large_problems_are_for_gpus_and_have_their_precisions():
    found = family("g", "p", images=3, naive=make, engine=make, students=(1, 16), cpu=4, precisions=True)
    assert {case.name: case.cuda for case in found} == {
        "g/p/naive/S1": False,
        "g/p/functional/S1": False,
        "g/p/functional/S16": True,
        "g/p/naive-tf32/S1": True,
        "g/p/functional-tf32/S1": True,
        "g/p/functional-tf32/S16": True,
        "g/p/naive-bf16/S1": True,
    }


@pytest.mark.parametrize(
    ("changes", "cpu", "cuda"),
    [
        ({}, True, True),
        ({"cuda": True}, False, True),
        ({"precision": "tf32"}, False, True),
        ({"engine": "compiled"}, True, True),
        ({"engine": "dual"}, True, False),
        ({"engine": "dual-compiled"}, True, False),
        ({"engine": "dual", "cuda": True}, False, False),
    ],
)
def test_a_case_is_measured_where_it_is_what_it_is_called(changes, cpu, cuda):
    assert case(**changes).runs_on("cpu") == cpu
    assert case(**changes).runs_on("cuda") == cuda


def test_a_precision_lasts_as_long_as_its_block():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with computing("tf32", CPU):
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (True, True)
        with computing("float32", CPU):
            assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (False, False)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
    with computing("bf16", CPU):
        assert (torch.ones(4, 4) @ torch.ones(4, 4)).dtype == torch.bfloat16


def test_mixed_precision_sees_weights_that_have_moved():
    layer, images = torch.nn.Linear(3, 2, bias=False), torch.ones(1, 3)
    with computing("bf16", CPU):
        before = layer(images)
        with torch.no_grad():
            layer.weight.add_(5)
        assert not torch.equal(layer(images), before)
