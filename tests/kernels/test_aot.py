import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
import triton
from triton.runtime.jit import JITFunction

from fastdistill_kernels import aot
from fastdistill_kernels.aot import Resources, complaints, faults, overdue
from fastdistill_kernels.gpu.launching import Launch
from fastdistill_kernels.gpu.match import prepare_match

LEAN = Resources(registers=64, spilled=0, shared=2048, matrix=False)
MATRIX = dataclasses.replace(LEAN, matrix=True)


def alone(*words, code=None):
    """Runs the command, or some code, in a process whose kernels are not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = ["-c", code] if code else ["-m", "fastdistill_kernels.aot", *words]
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)


def budgeted(**changes):
    return {"match/ours/float32/0": {"cuda-9.0": dataclasses.asdict(dataclasses.replace(LEAN, **changes))}}


def test_what_is_within_budget_passes():
    assert complaints({"match/ours/float32/0": {"cuda-9.0": LEAN}}, budgeted(), whole=True) == []


@pytest.mark.parametrize("key", ["registers", "shared"])
def test_what_exceeds_its_budget_is_named(key):
    found = complaints({"match/ours/float32/0": {"cuda-9.0": LEAN}}, budgeted(**{key: 1}), whole=True)
    assert len(found) == 1 and f"may take 1 of {key}, takes" in found[0]


def test_a_launch_that_has_lost_the_matrix_units_is_named():
    label = "match/ours/float32/0"
    budget = {label: {"cuda-9.0": dataclasses.asdict(MATRIX)}}
    found = complaints({label: {"cuda-9.0": LEAN}}, budget, whole=True)
    assert len(found) == 1 and "showed wgmma and does no more" in found[0]
    assert complaints({label: {"cuda-9.0": MATRIX}}, budget, whole=True) == []


def test_a_launch_without_budget_and_a_budget_without_launch_are_named():
    found = complaints({"match/new/float32/0": {"cuda-9.0": LEAN}}, budgeted(), whole=True)
    assert found == [
        "match/new/float32/0 on cuda-9.0 has no budget: write one",
        "match/ours/float32/0 has a budget and is gone: write a new one",
    ]
    assert len(complaints({}, budgeted(), whole=False)) == 0


def test_no_budget_allows_a_spill_or_a_product_without_matrix_units():
    spilling = dataclasses.replace(LEAN, spilled=8)
    budget = {"match/ours/float32/0": {"gfx942": dataclasses.asdict(spilling)}}
    assert "spills 8" in complaints({"match/ours/float32/0": {"gfx942": spilling}}, budget, whole=True)[0]
    for precision, sentences in (("bf16", 1), ("tf32", 1), ("float32", 0)):
        assert len(faults({f"convolution/forward/{precision}/0": {"cuda-9.0": LEAN}})) == sentences
        assert faults({f"convolution/forward/{precision}/0": {"cuda-9.0": MATRIX}}) == []
        assert len(faults({f"first_block/{precision}/moments/0": {"cuda-9.0": LEAN}})) == sentences
    assert faults({"philox/normal/float32/0": {"cuda-9.0": spilling}}) == []
    assert len(faults({"philox/uniform/float32/0": {"cuda-9.0": spilling}})) == 1


def test_a_launch_is_specialised_as_a_run_of_it_would_be():
    a = torch.empty(3, 32, device="meta")
    programs = torch.empty(7, 4, dtype=torch.int64, device="meta")
    launch, one = (
        dataclasses.replace(found, kernel=JITFunction(found.kernel.fn))
        for x in (a, a[:, :1])
        for found in prepare_match(x, x, programs, 20, "ours")[2]
    )
    made = aot.source(launch)
    assert made.signature["p_a"] == "*fp32" and made.signature["p_table"] == "*i64"
    assert made.signature["programs"] == "i32"
    index = {name: at for at, name in enumerate(launch.kernel.arg_names)}
    assert (index["size"],) in made.attrs and (index["programs"],) not in made.attrs
    assert made.constants[(index["BLOCK"],)] == 32
    assert aot.source(one).signature["size"] == "constexpr"


def test_every_family_has_a_budget_for_every_target():
    path = aot._BUDGETS / f"triton-{triton.__version__}.json"
    if not path.exists():
        pytest.skip(f"no budget is committed for triton {triton.__version__}")
    budget = json.loads(path.read_text())
    variants = {
        f"{variant}/{index}"
        for family in aot.FAMILIES
        for variant, launches in aot.launches(family, "cuda-9.0").items()
        for index in range(len(launches))
    }
    assert budget.keys() == variants and len(variants) <= 200
    assert all(set(targets) == set(aot.TARGETS) for targets in budget.values())


def test_the_command_compiles_for_every_target(tmp_path):
    path = aot._BUDGETS / f"triton-{triton.__version__}.json"
    done = alone("--only", "match/ours/float32", "--workers", "1", "--limit", "0")  # passed by any run
    assert done.returncode == (5 if path.exists() else 4), done.stderr
    assert not path.exists() or "expected a run of at most 0 s" in done.stderr
    head, row, seconds = done.stdout.splitlines()
    assert seconds.startswith("4 compiled in ") and seconds.endswith(" s")
    assert head.split() == list(aot.TARGETS)
    name, *cells = row.split()
    assert name == "match/ours/float32/0" and len(cells) == 4
    assert all(0 < int(cell.split("/")[0]) <= 255 and cell.split("/")[1] == "0" for cell in cells)


@pytest.mark.parametrize("name, block", [("cuda-9.0", 4096), ("gfx942", 16384)])
def test_a_spill_is_seen(name, block):
    code = f"""
import dataclasses
from fastdistill_kernels import aot
launch = aot.launches("match", "{name}")["match/ours/float32"][0]
launch = dataclasses.replace(launch, warps=1, constants=launch.constants | {{"BLOCK": {block}}})
print(aot.compile_for(launch, "{name}").spilled)
"""
    done = alone(code=code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_all_that_spills_on_amd_is_counted():
    text = """
    .private_segment_fixed_size: 12
    .sgpr_count:     40
    .sgpr_spill_count: 3
    .vgpr_count:     64
    .vgpr_spill_count: 2
    """
    assert aot._amd_usage(text) == (64, 17)
    assert aot._amd_usage(".vgpr_count: 8\n .vgpr_spill_count: 0") == (8, 0)


def test_products_of_few_rows_may_be_the_older_instructions():
    def launch(rows):
        return Launch(kernel=None, grid=1, arguments={}, constants={"BM": rows})

    assert aot._instructions(launch(64), "cuda-9.0") == ["wgmma"]
    assert aot._instructions(launch(16), "cuda-9.0") == ["wgmma", "mma.sync"]
    assert aot._instructions(launch(16), "gfx942") == ["v_mfma"]
    assert aot._instructions(Launch(kernel=None, grid=1, arguments={}), "cuda-10.0") == ["tcgen05.mma"]


def test_a_run_past_its_limit_is_named():
    assert overdue(9.0, None) == overdue(9.0, 9.0) == []
    (sentence,) = overdue(400.4, 360)
    assert sentence.startswith("expected a run of at most 360 s, got 400 s: ")


def test_a_kernel_that_does_not_compile_is_a_finding():
    label, name, found = aot._work(("match", "cuda-9.0", "match/ours/float32", 99))
    assert (label, name) == ("match/ours/float32/99", "cuda-9.0") and "IndexError" in found


@pytest.fixture
def compiling(monkeypatch, tmp_path):
    """A process whose kernels seem to compile, to what is put into this dictionary, and budgets in a new folder."""
    found = {}
    monkeypatch.setattr(aot, "interpreted", lambda: False)
    monkeypatch.setattr(aot, "compiled", lambda words, workers: (found, []))
    monkeypatch.setattr(aot, "_BUDGETS", tmp_path / "budgets")
    return found


def test_a_budget_is_written_and_then_held_to(compiling, capsys):
    label = "match/ours/float32/0"
    compiling[label] = {"cuda-9.0": LEAN}
    assert aot.main([]) == 4 and "write one with --write" in capsys.readouterr().err
    assert aot.main(["--write"]) == 0
    (path,) = aot._BUDGETS.iterdir()
    assert path.name == f"triton-{triton.__version__}.json"
    assert json.loads(path.read_text()) == {label: {"cuda-9.0": dataclasses.asdict(LEAN)}}
    assert aot.main([]) == 0
    compiling[label] = {"cuda-9.0": dataclasses.replace(LEAN, registers=65)}
    assert aot.main([]) == 3
    assert "may take 64 of registers, takes 65" in capsys.readouterr().err


def test_no_budget_is_written_of_what_spills_or_of_a_part(compiling, capsys):
    compiling["match/ours/float32/0"] = {"cuda-9.0": dataclasses.replace(LEAN, spilled=8)}
    assert aot.main(["--write"]) == 3 and "spills 8" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        aot.main(["--write", "--only", "match"])
    assert stopped.value.code == 2 and "expected --write alone" in capsys.readouterr().err
    assert not aot._BUDGETS.exists()


@pytest.mark.parametrize("family", aot.FAMILIES)
def test_arguments_are_addressed_in_64_bits(family):
    code = f"""
import re, triton
from fastdistill_kernels import aot
kernels = {{one.kernel: one for found in aot.launches("{family}", "cuda-9.0").values() for one in found}}
for kernel, launch in kernels.items():
    text = triton.compile(aot.source(launch), target=aot.target("cuda-9.0")[0], options=launch.options).asm["ttir"]
    places = dict(re.findall(r"%(\\w+) = tt.splat %(\\w+) : !tt.ptr", text))
    for pointer, width in re.findall(r"tt.addptr %(\\w+), %\\w+ : .*(i32|i64)>? loc", text):
        print(kernel.__name__, places.get(pointer, pointer), width)
"""
    done = alone(code=code)
    assert done.returncode == 0, done.stderr
    kernels = {one.kernel for found in aot.launches(family, "cuda-9.0").values() for one in found}
    arguments = {kernel.__name__: kernel.arg_names for kernel in kernels}
    seen = set()
    for name, pointer, width in map(str.split, done.stdout.splitlines()):
        # of what an argument points to; a place within it may be 32 bits on, and parts of sums are few
        if pointer in arguments[name] and not {"partial", "partials", "sums"} & set(pointer.split("_")):
            assert width == "i64", (name, pointer)
            seen.add(name)
    assert seen >= arguments.keys() - {"sum_kernel"}


def test_interpreted_kernels_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as stopped:
        aot.main([])
    assert stopped.value.code == 2
    assert "unset TRITON_INTERPRET" in capsys.readouterr().err
