import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fastdistill_kernels
from fastdistill_kernels import normal, philox, uniform
from fastdistill_kernels.gpu import philox as gpu
from fastdistill_kernels.philox import cost_philox
from fastdistill_kernels.reference import philox as reference
from tests.kernels.any_shape import given, settings, st

KINDS = ("philox", "uniform", "normal")
SIZES = ((1, 1), (2, 0), (0, 5), (1, 2), (7, 41), (3, 1023), (2, 1025), (1, 4096))
LAST = 0xFFFFFFFF
KEYS = ((0, 0, 0, 0), (LAST, 0x89ABCDEF, 0x80000000, LAST), (7, 1 << 31, 1, 16))  # two of the seed, stream, step

WORDS = [
    [254365144, 2406451780, 244312107, 688230642, 3702832039],
    [141252528, 4168892780, 1986854544, 1360261970, 1777582675],
]
UNIFORM = [
    [0.059223949909210205, 0.5602957010269165, 0.05688333511352539],
    [0.03288787603378296, 0.9706459641456604, 0.46260058879852295],
]
NORMAL = [
    [-2.208981990814209, -0.8793491721153259, 1.2799581289291382],
    [2.5689706802368164, -0.4792591333389282, -0.5053524971008301],
]


def textbook(kind, students, key0, key1, stream, step, count):
    """Word by word as published, in Python's integers and torch's float64."""
    rows = []
    for student in students.tolist():
        row = []
        for block in range(-(-count // 4)):
            c0, c1, c2, c3, k0, k1 = block, student, step, stream, key0, key1
            for _ in range(10):
                product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
                c0, c1 = (product1 >> 32) ^ c1 ^ k0, product1 & LAST
                c2, c3 = (product0 >> 32) ^ c3 ^ k1, product0 & LAST
                k0, k1 = (k0 + 0x9E3779B9) & LAST, (k1 + 0xBB67AE85) & LAST
            row += [c0, c1, c2, c3]
        rows.append(row)
    words = torch.tensor(rows, dtype=torch.int64).view(len(students), -(-count // 4) * 4)
    if kind == "philox":
        return words[:, :count]
    if kind == "uniform":
        return (words[:, :count] >> 8).to(torch.float32) * 2.0**-24
    pairs = words.unflatten(-1, (-1, 2)).to(torch.float64)
    radius = torch.sqrt(-2 * torch.log((pairs[..., 0] + 1) * 2.0**-32))
    angle = pairs[..., 1] * (2 * math.pi * 2.0**-32)
    numbers = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return numbers.flatten(-2).to(torch.float32)[:, :count]


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
    left, right = reference.generate(key, counter)
    assert [left[0], right[0], left[1], right[1]] == list(expected)


@pytest.mark.parametrize("piece", [3, 64, 1 << 14])
@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_has_every_bit_of_the_textbook(kind, key, piece, monkeypatch):
    monkeypatch.setattr(reference, "_PIECE", piece)  # several students in one piece, and a student in several
    for students, count in SIZES:
        indices = torch.arange(students) * 1_000_003 + 5
        found = getattr(reference, kind)(indices, *key, count)
        assert found.is_contiguous()
        assert torch.equal(found, textbook(kind, indices, *key, count))


def test_the_numbers_are_those_of_committed_runs():
    students = torch.tensor([0, 5])
    assert philox(2**63 + 11, 3, 7, students, 5).tolist() == WORDS
    assert uniform(2**63 + 11, 3, 7, students, 3).tolist() == UNIFORM
    assert torch.allclose(normal(2**63 + 11, 3, 7, students, 3), torch.tensor(NORMAL), rtol=2e-7, atol=0)


def check_kernel(kind, students, key, count):
    found = getattr(gpu, kind)(students, *key, count)
    truth = getattr(reference, kind)(students.cpu(), *key, count)
    assert found.dtype == truth.dtype
    assert found.shape == truth.shape
    assert_same(kind, found.cpu(), truth)


def assert_same(kind, found, truth):
    if kind != "normal":
        assert torch.equal(found, truth)
        return
    # logarithm, sine and cosine of another device may differ in float64's last bit, which survives the rounding rarely
    difference = (found.view(torch.int32) - truth.view(torch.int32)).abs()
    assert difference.le(1).all()
    assert difference.sum() <= 1


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_equal_the_reference(kind, key, device, poisoned):
    for students, count in SIZES:
        indices = (torch.arange(students) * 1_000_003 + 5).to(device)
        check_kernel(kind, indices, key, count)
    check_kernel(kind, torch.tensor([LAST, 1 << 31, 0, 9, 9, 9])[::2].to(device), key, 9)


word = st.integers(0, LAST)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(kind=st.sampled_from(KINDS), key=st.tuples(word, word, word, word), first=word, count=st.integers(0, 2100))
def test_kernels_equal_the_reference_at_any_counter(kind, key, first, count):
    check_kernel(kind, torch.tensor([first, first // 2]), key, count)


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
        assert_same(draw.__name__, *(draw(11, 1, 4, students.to(where), 1001).cpu() for where in (device, "cpu")))


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


@pytest.mark.parametrize("kind", KINDS)
def test_operators_are_registered_whole(kind):
    operator = getattr(torch.ops.fastdistill, kind).default
    for students, count in ((3, 6), (0, 6), (3, 0)):
        torch.library.opcheck(operator, (torch.arange(students), LAST, 2, 3, 4, count))


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_draws_equal_eager_ones_without_compiling_every_step(kind):
    torch.compiler.reset()
    draw, students = getattr(fastdistill_kernels, kind), torch.arange(3)
    compiled = torch.compile(
        lambda step: draw((1 << 63) + 5, 2, step, students, 10), fullgraph=True, backend="aot_eager"
    )
    for step in (3, 4):  # a number is taken for a variable when it has changed once
        compiled(step)
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in (5, 800, LAST):
            assert torch.equal(compiled(step), draw((1 << 63) + 5, 2, step, students, 10))


@pytest.mark.parametrize(("kind", "flops", "size"), [("philox", 0, 504), ("uniform", 60, 264), ("normal", 300, 264)])
def test_operations_and_least_traffic_are_counted(kind, flops, size):
    with FlopCounterMode(display=False) as counter:
        getattr(fastdistill_kernels, kind)(0, 0, 0, torch.arange(3), 20)
    assert counter.get_total_flops() == flops
    assert cost_philox(3, 20, kind).bytes == size
