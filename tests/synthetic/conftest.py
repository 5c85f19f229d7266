import pytest
import torch

from fastdistill.data.normalization import Normalization
from fastdistill.data.zca import fit_zca
from fastdistill.synthetic.distilled import Distilled
from fastdistill.synthetic.schedule import Schedule

NAMES = ("cat", "été ✨", "../../etc/passwd", "", "CON", "a" * 200, "a/b\\c\0d", ".hidden", "cat")


def soft_rows(*shape, dtype=torch.float32):
    """Labels of no particular sum, largest anywhere, some entries 0."""
    rows = torch.rand(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 3 - 1
    return rows.clamp_min(0).to(dtype)


def build(
    runs=1,
    channels=3,
    zca=False,
    floats=False,
    scheduled=False,
    rates_per_run=False,
    stepping=None,
    soft=None,
    **changes,
):
    """Distilled images of nine classes, with pixels mostly inside the range of the real ones."""
    generator = torch.Generator().manual_seed(runs + 10 * channels)
    low, high = (-3.0, 5.0) if floats else (0.0, 1.0)
    pixels = low + (high - low) * (torch.rand(runs, 18, channels, 4, 5, generator=generator) * 1.1 - 0.05)
    if zca:
        whitening = fit_zca(torch.rand(60, channels, 4, 5, generator=generator))
        normalization = Normalization(mean=(0.0,) * channels, std=(1.0,) * channels, whitening=whitening)
        images = ((pixels.flatten(2) - whitening.mean) @ whitening.matrix).view(pixels.shape)
    else:
        normalization = Normalization(mean=(0.2, 0.4, 0.6, 0.5)[:channels], std=(0.5, 0.25, 0.3, 0.2)[:channels])
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (normalization.mean, normalization.std))
        images = (pixels - mean) / std
    schedule = None
    if scheduled:
        rates = torch.linspace(0.01, 0.05, 3, dtype=torch.float64)
        schedule = Schedule(
            rates=rates + torch.arange(runs)[:, None] if rates_per_run else rates,
            images=torch.randint(0, 18, (3, 5), generator=generator),
            **(stepping or {}),
        )
    fields = {
        "images": images,
        "labels": torch.arange(18) % 9 if soft is None else soft_rows(*soft),  # hard ones are not sorted by class
        "class_names": NAMES,
        "normalization": normalization,
        "dataset": "folder:/home/someone/birds",
        "augmentation": "color_crop",
        "align_corners": False,
        "unit": "floats" if floats else "bytes",
        "pixel_range": (low, high),
        "config_hash": "abc",
        "details": {"name": "x"},
        "schedule": schedule,
    }
    return Distilled(**fields | changes)


def difference(one, other):
    """Names of the fields in which two sets differ, tensors bit by bit."""
    fields = [
        "class_names",
        "dataset",
        "augmentation",
        "align_corners",
        "unit",
        "pixel_range",
        "config_hash",
        "details",
    ]
    found = [name for name in fields if getattr(one, name) != getattr(other, name)]
    tensors = [
        (one.images, other.images),
        (one.labels, other.labels),
        (torch.tensor(one.normalization.mean), torch.tensor(other.normalization.mean)),
        (torch.tensor(one.normalization.std), torch.tensor(other.normalization.std)),
    ]
    if (one.learning_rate is None) != (other.learning_rate is None):
        found.append("learning_rate")
    elif one.learning_rate is not None:
        tensors.append((one.learning_rate, other.learning_rate))
    for parts in ([one.normalization.whitening, other.normalization.whitening], [one.schedule, other.schedule]):
        if (parts[0] is None) != (parts[1] is None):
            found.append("whitening or schedule")
        elif parts[0] is not None:
            for name, left in vars(parts[0]).items():
                right = getattr(parts[1], name)
                if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
                    tensors.append((left, right))
                elif left is not right and left != right:
                    found.append(name)
    for position, (left, right) in enumerate(tensors):
        if left.dtype != right.dtype or not torch.equal(left, right):
            found.append(f"tensor {position}")
    return found


KINDS = {
    "plain": {},
    "grey": {"channels": 1},
    "four channels": {"channels": 4},
    "runs": {"runs": 3},
    "zca": {"zca": True},
    "floats": {"floats": True, "channels": 1},
    "schedule": {"scheduled": True, "runs": 2},
    "own rates": {"scheduled": True, "rates_per_run": True, "runs": 2},
    "all": {"runs": 2, "zca": True, "scheduled": True, "rates_per_run": True, "channels": 1},
    "eleven runs": {"runs": 11, "channels": 1},
    "momentum": {
        "scheduled": True,
        "stepping": {"optimizer": "momentum", "momenta": torch.tensor([0.9, 0.0, 1.0]), "decay": 5e-4},
    },
    "adam": {
        "runs": 2,
        "scheduled": True,
        "rates_per_run": True,
        "stepping": {
            "optimizer": "adam",
            "momenta": torch.full((2, 3), 0.9, dtype=torch.float64),
            "augmentation": "color_flip",
            "align_corners": False,
        },
    },
    "learning rates": {"runs": 2, "learning_rate": torch.tensor([0.1, 1 / 3])},
    "learning rate": {"learning_rate": torch.tensor([1 / 3], dtype=torch.float64), "soft": (1, 18, 9)},
    "soft": {"runs": 2, "soft": (18, 9)},
    "own soft": {"runs": 3, "soft": (3, 18, 9), "channels": 1},
    "own soft of one run": {"soft": (1, 18, 9)},
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def kind(request):
    """Distilled images of every kind."""
    return build(**request.param)


@pytest.fixture(name="build")
def build_fixture():
    return build


@pytest.fixture(name="soft_rows")
def soft_rows_fixture():
    return soft_rows


@pytest.fixture(name="difference")
def difference_fixture():
    return difference
