import pytest
import torch

from fastdistill_kernels import normal, philox, uniform
from fastdistill_kernels.reference import philox as reference


def words(values):
    return tuple(torch.tensor(value) for value in values)


# known answers of the Random123 distribution (Salmon et al. 2011), philox4x32 with 10 rounds
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, expected):
    assert reference.philox(key, words(counter)).tolist() == list(expected)


def test_a_student_draws_the_same_in_any_batch(device):
    students = torch.arange(7, device=device)
    together = philox(5, 2, 9, students, 41)
    for student in (0, 3, 6):
        assert torch.equal(philox(5, 2, 9, students[student : student + 1], 41)[0], together[student])
    assert torch.equal(philox(5, 2, 9, students.flip(0), 41), together.flip(0))
    assert torch.equal(philox(5, 2, 9, students, 12), together[:, :12])


def test_devices_agree(device):
    students = torch.arange(3)
    for draw in (philox, uniform, normal):
        here = draw(11, 1, 4, students.to(device), 1001).cpu()
        there = draw(11, 1, 4, students, 1001)
        # float64 logarithms of two devices may differ in the last bit, which survives the rounding to float32 rarely
        assert torch.equal(here, there) if draw is not normal else (here - there).abs().max() <= 1e-6


def test_every_argument_changes_the_words():
    students = torch.arange(2)
    draws = [
        philox(0, 0, 0, students, 8),
        philox(1, 0, 0, students, 8),
        philox(1 << 40, 0, 0, students, 8),
        philox(0, 1, 0, students, 8),
        philox(0, 0, 1, students, 8),
        philox(0, 0, 0, students + 2, 8),
    ]
    seen = torch.cat([draw.flatten() for draw in draws])
    assert len(seen.unique()) == len(seen)


def test_uniform_and_normal_have_their_moments():
    students = torch.arange(4)
    u, z = uniform(3, 0, 0, students, 100_000).double(), normal(3, 1, 0, students, 100_001).double()
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 2e-3
    assert abs(u.var() - 1 / 12) < 1e-3
    assert z.shape == (4, 100_001)
    assert abs(z.mean()) < 5e-3
    assert abs(z.var() - 1) < 1e-2
    assert abs((z**4).mean() - 3) < 0.1
    assert abs(torch.corrcoef(z)[0, 1]) < 1e-2


def test_arguments_outside_their_range_are_named():
    students = torch.arange(2)
    for arguments in ((-1, 0, 0), (1 << 64, 0, 0), (0, 1 << 32, 0), (0, 0, -1)):
        with pytest.raises(ValueError, match=r"expected .* in \[0, 2\^"):
            philox(*arguments, students, 4)
    with pytest.raises(ValueError, match="int64 student indices"):
        philox(0, 0, 0, students.float(), 4)
