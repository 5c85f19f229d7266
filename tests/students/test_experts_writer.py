"""Writing experts: row by row, taken up again, whole only when it says so."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file

from fastdistill.students.experts import FILE, UNFINISHED, checksums
from fastdistill.students.experts_writer import ExpertsWriter

SHAPE = (4, 3, 64)


def weights(seed=0):
    return torch.randn(*SHAPE, generator=torch.Generator().manual_seed(seed))


def written(folder, content, storage="float32"):
    writer = ExpertsWriter(folder, SHAPE, storage)
    writer.begin()
    sums = torch.zeros(SHAPE[:2], dtype=torch.int64)
    for first in (0, 3):  # chunks of three
        for epoch in range(SHAPE[1]):
            rows = content[first : first + 3, epoch]
            sums[first : first + 3, epoch] = writer.write(first, epoch, rows)
    return writer, sums


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_rows_come_to_their_place(tmp_path, storage):
    writer, sums = written(tmp_path, weights(), storage)
    sha256 = writer.verify(sums)
    assert not (tmp_path / FILE).exists()
    writer.publish()
    content = (tmp_path / FILE).read_bytes()
    assert len(content) == writer.bytes
    assert hashlib.sha256(content).hexdigest() == sha256
    assert int.from_bytes(content[:8], "little") % 8 == 0
    expected = weights().to(getattr(torch, storage))
    assert torch.equal(load_file(tmp_path / FILE)["weights"], expected)
    assert torch.equal(sums[:, 1], checksums(expected[:, 1]))


def test_a_file_that_is_there_is_gone_on_with(tmp_path):
    writer, sums = written(tmp_path, weights())
    again = ExpertsWriter(tmp_path, SHAPE, "float32")
    assert again.begin()
    sums[1:2, 1] = again.write(1, 1, torch.ones(1, SHAPE[2]))
    again.verify(sums)
    assert writer.bytes == again.bytes


def test_a_published_file_is_gone_on_with_too(tmp_path):
    writer, sums = written(tmp_path, weights())
    writer.publish()
    assert ExpertsWriter(tmp_path, SHAPE, "float32").begin()
    assert ExpertsWriter(tmp_path, SHAPE, "float32").verify(sums)


@pytest.mark.parametrize(("shape", "storage"), [((4, 3, 32), "float32"), (SHAPE, "bfloat16"), ((3, 4, 64), "float32")])
def test_a_file_of_another_shape_is_begun_again(tmp_path, shape, storage):
    written(tmp_path, weights())
    other = ExpertsWriter(tmp_path, shape, storage)
    assert not other.begin()
    assert (tmp_path / UNFINISHED).stat().st_size == other.bytes
    assert other.begin()


def test_a_truncated_file_is_begun_again(tmp_path):
    written(tmp_path, weights())
    path = tmp_path / UNFINISHED
    path.write_bytes(path.read_bytes()[:-1])
    assert not ExpertsWriter(tmp_path, SHAPE, "float32").begin()


def test_damage_is_found_and_named_before_the_end(tmp_path):
    writer, sums = written(tmp_path, weights())
    path = tmp_path / UNFINISHED
    content = bytearray(path.read_bytes())
    content[-SHAPE[2] * 4 - 1] ^= 64  # the last row but one
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights of expert 3 after epoch 1 in .* as they were written, got others"):
        writer.verify(sums)


def test_what_the_disk_has_yet_to_give_is_known(tmp_path):
    big = ExpertsWriter(tmp_path, (2, 2, 2**20), "float32")
    assert big.missing == big.bytes
    big.begin()
    assert big.bytes - 2**16 < big.missing <= big.bytes
    big.write(0, 0, torch.ones(2, 2**20))
    assert big.missing < 0.6 * big.bytes


def test_a_failing_disk_is_named(tmp_path):
    with pytest.raises(OSError, match="No such file") as error:
        ExpertsWriter(tmp_path / "nowhere", SHAPE, "float32").begin()
    assert str(tmp_path / "nowhere") in error.value.filename
