"""Reading experts: what was written, only the rows asked for, and one sentence for anything else."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdistill.config import StudentConfig
from fastdistill.derivatives.layout import Layout
from fastdistill.students.ensemble import student_module
from fastdistill.students.experts import DESCRIPTION, FILE, Experts, checksums
from fastdistill.students.experts_writer import ExpertsWriter
from tests.fuzz import fuzz

STUDENT = StudentConfig(width=2, depth=1)
COUNT, EPOCHS = 3, 2
CPU = torch.device("cpu")


def layout_of(student=STUDENT, shape=(1, 8, 8), classes=4):
    return Layout.of(student_module(student, shape, classes))


def make(folder, *, storage="float32", student=STUDENT, weights=None, **changes):
    """Experts with random weights ``[E, K+1, P]``, which are returned."""
    layout = layout_of(student)
    if weights is None:
        weights = torch.randn(COUNT, EPOCHS + 1, layout.size, generator=torch.Generator().manual_seed(0))
    folder.mkdir(exist_ok=True)
    writer = ExpertsWriter(folder, tuple(weights.shape), storage)
    writer.begin()
    sums = torch.stack([writer.write(0, epoch, weights[:, epoch]) for epoch in range(EPOCHS + 1)], dim=1)
    sha256 = writer.verify(sums)
    writer.publish()
    said = {"dataset": "digits", "data_hash": "abc", "zca": False, **changes}
    accuracy = {"training": [0.9, 0.8, 0.7], "test": [0.5, 0.6, 0.7]}
    writer.describe(sums=sums, sha256=sha256, layout=layout, student=asdict(student), accuracy=accuracy, **said)
    return weights


def test_experts_are_read_as_they_were_written(tmp_path):
    weights = make(tmp_path, extra={"torch": "x"})
    found = Experts.open(tmp_path)
    assert (found.count, found.epochs) == (COUNT, EPOCHS)
    assert torch.equal(found.weights, weights)
    assert torch.equal(load_file(tmp_path / FILE)["weights"], weights)  # a plain file for any reader
    assert (found.dataset, found.data_hash, found.zca) == ("digits", "abc", False)
    assert found.student == asdict(STUDENT)
    assert found.shapes == dict(layout_of().shapes)
    assert found.description["extra"] == {"torch": "x"}
    assert "3 experts of 2 epochs" in str(found)
    assert "training accuracy 80.00 ± 8.16 %, test accuracy 60.00 ± 8.16 %" in str(found)


def test_rows_are_of_the_experts_and_epochs_asked_for(tmp_path, device):
    weights = make(tmp_path)
    experts, epochs = torch.tensor([2, 0, 2]), torch.tensor([0, 2, 1])
    found = Experts.open(str(tmp_path)).at(experts.to(device), epochs.to(device), dtype=torch.float64, device=device)
    assert found.device.type == device.type
    assert torch.equal(found.cpu(), torch.stack([weights[2, 0], weights[0, 2], weights[2, 1]]).double())


def test_bfloat16_rounds_only_what_is_stored(tmp_path):
    weights = make(tmp_path, storage="bfloat16")
    found = Experts.open(tmp_path)
    assert found.weights.dtype == torch.bfloat16
    row = found.at(torch.tensor([1]), torch.tensor([2]), dtype=torch.float32, device=CPU)[0]
    assert torch.equal(row, weights[1, 2].bfloat16().float())
    assert 0 < (row - weights[1, 2]).abs().max() < 0.02


def test_only_the_rows_asked_for_come_into_memory(tmp_path):
    """Writing, verifying and reading 240 MB, in a process of its own, whose peak is its own."""
    code = f"""
from dataclasses import asdict
from pathlib import Path
import torch
from torch import nn
from fastdistill.config import StudentConfig
from fastdistill.derivatives.layout import Layout
from fastdistill.loop.environment import peak_memory_mb
from fastdistill.students.experts import Experts
from fastdistill.students.experts_writer import ExpertsWriter
layout, folder = Layout.of(nn.Linear(1000, 500, device="meta")), Path({str(tmp_path)!r})
writer = ExpertsWriter(folder, (20, 6, layout.size), "float32")
rows = torch.arange(2.0)[:, None].expand(2, layout.size).contiguous()
rows.isfinite().all()
writer.begin()
peak = lambda: peak_memory_mb(torch.device("cpu"))
before = peak()
sums = torch.zeros(20, 6, dtype=torch.int64)
for first in range(0, 20, 2):
    for epoch in range(6):
        sums[first : first + 2, epoch] = writer.write(first, epoch, rows + (first + epoch))
sha256 = writer.verify(sums)
writer.publish()
writer.describe(sums=sums, sha256=sha256, layout=layout, student=asdict(StudentConfig()), dataset="d", data_hash="h",
    zca=False, accuracy={{"training": [0.5] * 20, "test": [0.5] * 20}})
assert peak() < before + 30, (before, peak())
experts = Experts.open(folder)
assert experts.weights.nbytes > 240e6
found = experts.at(torch.tensor([3, 19]), torch.tensor([0, 5]), dtype=torch.float32, device=torch.device("cpu"))
assert found[:, 0].tolist() == [3, 24]
assert peak() < before + 30, (before, peak())
float(experts.weights.sum())
assert peak() > before + 200, (before, peak())  # the measure sees what is read
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_no_experts_are_one_sentence_that_says_what_to_do(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="found none: make some with fastdistill experts"):
            Experts.open(folder)
    ExpertsWriter(tmp_path, (1, 2, 32), "float32").begin()
    with pytest.raises(ValueError, match="got ones in training: repeat their fastdistill experts command"):
        Experts.open(tmp_path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def another_tensor(path):
    save_file({"images": load_file(path)["weights"]}, path)


def another_dtype(path):
    save_file({"weights": load_file(path)["weights"].view(torch.int32)}, path)


def another_shape(path):
    save_file({"weights": load_file(path)["weights"].transpose(0, 1).contiguous()}, path)


def a_broken_header(path):
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


@pytest.mark.parametrize("damage", [truncate, another_tensor, another_dtype, another_shape, a_broken_header])
def test_a_damaged_or_foreign_file_is_named(tmp_path, damage):
    make(tmp_path)
    damage(tmp_path / FILE)
    with pytest.raises(ValueError, match="damaged or of another kind") as error:
        Experts.open(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_missing_file_of_weights_is_named(tmp_path):
    make(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(ValueError, match="No such file"):
        Experts.open(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"crc32": [[1, 2, 3]]},
        {"crc32": "none"},
        {"accuracy": {"training": [1.0], "test": [1.0]}},
        {"student": {"architecture": "convnt"}},
        {"student": {"colour": "red"}},
        {"shapes": [1]},
        {"zca": 1},
        {"data_hash": None},
        {"weights": {"storage": "float16", "shape": [3, 3, 4], "bytes": 1}},
    ],
)
def test_a_description_of_something_else_is_refused(tmp_path, change):
    make(tmp_path)
    path = tmp_path / DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match="damaged or of another kind"):
        Experts.open(tmp_path)


@pytest.mark.parametrize("name", [DESCRIPTION, FILE])
def test_any_damage_is_read_or_refused_in_a_sentence(tmp_path, name):
    make(tmp_path)
    content = (tmp_path / name).read_bytes()

    def read(_):
        experts = Experts.open(tmp_path)
        str(experts)
        every = torch.cartesian_prod(torch.arange(COUNT), torch.arange(EPOCHS + 1))
        experts.at(every[:, 0], every[:, 1], dtype=torch.float32, device=CPU)

    refused = fuzz(read, [content], tmp_path / name, count=500)
    assert name == DESCRIPTION or refused > 450  # the rest leaves every byte as it was


def test_a_changed_byte_is_found_when_its_row_is_read(tmp_path):
    weights = make(tmp_path)
    path = tmp_path / FILE
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # in the last row
    path.write_bytes(content)
    experts = Experts.open(tmp_path)
    first = experts.at(torch.tensor([0]), torch.tensor([0]), dtype=torch.float32, device=CPU)
    assert torch.equal(first[0], weights[0, 0])
    with pytest.raises(ValueError, match=r"expected the weights of expert 2 after epoch 2 in .*experts\.safetensors"):
        experts.at(torch.tensor([0, 2]), torch.tensor([0, 2]), dtype=torch.float32, device=CPU)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    weights = torch.randn(COUNT, EPOCHS + 1, layout_of().size)
    weights[1, 2, 5] = torch.nan
    make(tmp_path, weights=weights)
    experts = Experts.open(tmp_path)
    with pytest.raises(ValueError, match="the weights of expert 1 after epoch 2"):
        experts.at(torch.tensor([1]), torch.tensor([2]), dtype=torch.float32, device=CPU)


@pytest.mark.parametrize(
    ("experts", "epochs", "expected"),
    [
        ([3], [0], "experts in 0 to 2, got"),
        ([-1], [0], "experts in 0 to 2, got"),
        ([0], [3], "epochs in 0 to 2, got"),
        ([0], [-1], "epochs in 0 to 2, got"),
    ],
)
def test_experts_and_epochs_that_there_are_not_are_named(tmp_path, experts, epochs, expected):
    make(tmp_path)
    with pytest.raises(ValueError, match=expected):
        Experts.open(tmp_path).at(torch.tensor(experts), torch.tensor(epochs), dtype=torch.float32, device=CPU)


def check(folder, *, layout=None, student=STUDENT, data_hash="abc", zca=False):
    layout = layout or layout_of(student)
    Experts.open(folder).check(layout=layout, student=student, data_hash=data_hash, zca=zca)


def test_the_same_network_and_images_are_accepted(tmp_path):
    make(tmp_path)
    check(tmp_path)
    check(tmp_path, student=StudentConfig(width=2, depth=1, weights="xavier_normal", initialization="fixed"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"student": StudentConfig(width=3, depth=1)}, "experts with width 3, got .* with width 2: "),
        ({"student": StudentConfig(width=2, depth=2)}, "experts with depth 2"),
        ({"student": StudentConfig(width=2, depth=1, norm="none")}, "norm none, got .* with norm instance"),
        ({"student": StudentConfig(width=2, depth=1, activation="swish")}, "activation swish"),
        ({"student": StudentConfig(width=2, depth=1, pooling="max")}, "pooling max"),
        ({"student": StudentConfig(architecture="mlp")}, "architecture mlp, got .* with architecture convnet"),
        ({"layout": layout_of(classes=5)}, r"classifier.weight \(5, 72\), got .* with classifier.weight \(4, 72\)"),
        ({"layout": layout_of(shape=(3, 8, 8))}, r"convolution.weight \(2, 3, 3, 3\)"),
        ({"zca": True}, "experts with images whitened by ZCA, got .* with images without ZCA"),
        ({"data_hash": "def"}, r"images of this run \(data def\), got ones trained on others \(data abc of digits\)"),
    ],
)
def test_what_differs_is_named(tmp_path, changes, expected):
    make(tmp_path)
    with pytest.raises(ValueError, match=expected) as error:
        check(tmp_path, **changes)
    assert str(tmp_path) in str(error.value)


def test_a_plain_architecture_has_no_choices_to_differ_in(tmp_path):
    student = StudentConfig(architecture="mlp")
    make(tmp_path, student=student)
    check(tmp_path, student=StudentConfig(architecture="mlp", width=7, norm="batch"), layout=layout_of(student))


def test_padding_is_part_of_the_layout(tmp_path):
    longer = layout_of()
    make(tmp_path, weights=torch.zeros(COUNT, EPOCHS + 1, longer.size + 32))
    with pytest.raises(ValueError, match=f"{longer.size} parameters, got .* with {longer.size + 32} parameters"):
        check(tmp_path)


def test_checksums_see_every_bit():
    rows = torch.tensor([[1.0, 0.0], [1.0, -0.0], [1.0, 0.0]])
    found = checksums(rows).tolist()
    assert found[0] == found[2] != found[1]
    assert checksums(rows.bfloat16())[0] != found[0]
