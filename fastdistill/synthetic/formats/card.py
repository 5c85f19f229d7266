"""The ``README.md`` of an export: what the images are, how to load them, and what their form loses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml
from torch import Tensor

from fastdistill.synthetic.distilled import Distilled
from fastdistill.synthetic.formats import hf
from fastdistill.synthetic.formats.eight_bit import loss_of_eight_bits
from fastdistill.synthetic.schedule import Schedule

LOSSY = ("png", "hf")
_CANONICAL = ("safetensors", "hf")  # forms that have the run's own file
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_ROWS = {
    "safetensors": "`labels` in `distilled.safetensors`",
    "png": "`soft_label` in `metadata.jsonl`",
    "pt": "`labels.pt`, those of every run in `res_*.pt`",
    "hf": "the column `soft_label`",
}
_FORMS = {
    "safetensors": "`distilled.safetensors` holds the exact images with everything needed to train on them.",
    "png": "Every image is an 8-bit PNG picture in the folder of its class; `metadata.jsonl` lists them.",
    "pt": "`images.pt` and `labels.pt` hold the exact images of the first run, `res_*.pt` those of every run; all load "
    "with `torch.load(path, weights_only=True)`.",
    "hf": "`data/` holds a Parquet table whose column `image` has 8-bit PNG pictures, `distilled.safetensors` the "
    "exact images with everything needed to train on them. fastdistill loads the exact ones.",
}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Test accuracies of the exact and the 8-bit images, by the same students.

    Attributes:
        exact: share of right answers of every student trained on the exact images.
        eight_bit: of the same students trained on the 8-bit images.
        protocol: name of the protocol.
        architecture: of the students.
        duration: how long they trained, such as ``300 epochs``.
        weights: what they began with: fresh, fixed or pretrained ones.

    Raises:
        ValueError: when there are not as many of the one as of the other.
    """

    exact: Sequence[float]
    eight_bit: Sequence[float]
    protocol: str
    architecture: str
    duration: str
    weights: str = "fresh"

    def __post_init__(self) -> None:
        if not self.exact or len(self.exact) != len(self.eight_bit):
            raise ValueError(
                f"expected the accuracies of the same students, got {len(self.exact)} and {len(self.eight_bit)}: "
                "evaluate both images with the same seed"
            )

    @property
    def difference(self) -> float:
        """Mean over students of the accuracy on 8-bit images less that on exact ones."""
        return fmean(lossy - exact for exact, lossy in zip(self.exact, self.eight_bit, strict=True))

    @property
    def standard_error(self) -> float:
        """Of `difference`; NaN for a single student."""
        pairs = [lossy - exact for exact, lossy in zip(self.exact, self.eight_bit, strict=True)]
        return stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.nan


def card_text(distilled: Distilled, target: str, accuracy: Measurement | str = "not measured") -> str:
    """The card of an export.

    Args:
        distilled: the exact images.
        target: ``safetensors``, ``png``, ``pt`` or ``hf``.
        accuracy: of exact and 8-bit images, or why there is none; said for targets that lose precision.

    Returns:
        Markdown with YAML front matter.
    """
    front = yaml.safe_dump(_front_matter(distilled, target), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{front}---", _heading(distilled), _FORMS[target], _loading(distilled), _facts(distilled, target)]
    if distilled.soft:
        parts.insert(3, _soft_labels(distilled, target))
    if target in LOSSY:
        parts.append(_precision(distilled, accuracy))
    licence = "The licence of the real images holds for what is distilled from them: name it in the first lines."
    return "\n\n".join([*parts, f"## Licence\n\n{licence}"]) + "\n"


def _front_matter(distilled: Distilled, target: str) -> dict[str, Any]:
    count = distilled.runs * len(distilled)
    front: dict[str, Any] = {
        "license": "unknown",  # ours to choose it is not
        "pretty_name": f"{_dataset(distilled)}, distilled",
        "task_categories": ["image-classification"],
        "size_categories": [next((name for limit, name in _SIZES if count < limit), "n>1M")],
        "tags": ["dataset-distillation", "synthetic", "fastdistill"],
    }
    if target == "hf":
        front |= {
            "dataset_info": {"features": hf.features(distilled)},
            "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
        }
    return front


def _heading(distilled: Distilled) -> str:
    channels, height, width = distilled.images.shape[2:]
    runs = f", in {distilled.runs} independent runs" if distilled.runs > 1 else ""
    text = (
        f"# {_plain(_dataset(distilled))}, distilled\n\n{len(distilled)} synthetic images{runs} ({channels} × {height} "
        f"× {width}) of {len(distilled.class_names)} classes, made with fastdistill to train networks in place of the "
        "real training set."
    )
    if distilled.note:
        text += f"\n\n**{distilled.note[0].upper()}{distilled.note[1:]}.**"
    return text


def _soft_labels(distilled: Distilled, target: str) -> str:
    shared = "of every run its own" if distilled.labels.ndim == 3 and distilled.runs > 1 else "the same in every run"
    whose = f", {shared}" if distilled.runs > 1 else ""
    return (
        f"**The labels are soft**: every image has a row of {len(distilled.class_names)} numbers of at least 0 and any "
        f"sum, in the order of the classes{whose} ({_ROWS[target]}). Train with them: the loss of an image is their "
        "cross-entropy `-sum(row * log_softmax(logits))`, of a batch the mean, as "
        "`torch.nn.functional.cross_entropy(logits, rows)` computes it. The single class that an image also has, where "
        "a form needs one, is the one that it stands for and not what it was learned with."
    )


def _loading(distilled: Distilled) -> str:
    schedule = distilled.schedule
    if schedule is None:
        use = ""
    else:
        use = (
            f"\n\n`evaluate` replays the {schedule.steps} steps of {schedule.images.shape[1]} images, at learning "
            f"rates of {_span(schedule.rates)}: {_stepping(schedule)}."
        )
    return (
        '```python\nimport fastdistill\n\ndistilled = fastdistill.load("PATH OF THIS FOLDER")\n'
        f"fastdistill.evaluate(distilled, test_images, test_labels)\n```{use}"
    )


def _stepping(schedule: Schedule) -> str:
    """How a step moves the weights, in words."""
    if schedule.momenta is None:
        words = ["plain SGD, no momentum"]
    elif schedule.optimizer == "momentum":
        words = [f"SGD with a momentum of {_span(schedule.momenta)}"]
    else:
        words = [f"Adam with a β₁ of {_span(schedule.momenta)}"]
    if schedule.decay:
        words.append(f"weight decay {schedule.decay:.4g}")
    none = schedule.augmentation == "none"
    words.append("no augmentation" if none else f"augmentation {schedule.augmentation} of every image (DSA)")
    return ", ".join(words)


def _span(values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.4g} to {high:.4g}" if low < high else f"{low:.4g}"


def _facts(distilled: Distilled, target: str) -> str:
    statistics, low_high = distilled.normalization, distilled.pixel_range
    if statistics.whitening is None:
        space = f"mean {_numbers(statistics.mean)}, standard deviation {_numbers(statistics.std)} per channel"
    else:
        space = f"ZCA whitening, in `{'distilled' if target in _CANONICAL else 'statistics'}.safetensors`"
    rows = {
        "distilled from": _plain(_dataset(distilled)),
        "augmentation": _plain(distilled.augmentation),
        "normalisation": space,
        "real pixels": f"{distilled.unit}, {low_high[0]:g} to {low_high[1]:g}",
        "configuration": _plain(distilled.config_hash) or "not known",
        **{_plain(name): _plain(value) for name, value in distilled.details.items()},
    }
    return "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _precision(distilled: Distilled, accuracy: Measurement | str) -> str:
    loss = loss_of_eight_bits(distilled)
    lines = [
        "## What 8 bits lose\n",
        f"- values clipped to the range of real pixels: {100 * loss.clipped:.3g} %",
        f"- PSNR of the 8-bit pixels: {loss.psnr:.1f} dB",
    ]
    if isinstance(accuracy, str):
        return "\n".join([*lines, f"- accuracy: {_plain(accuracy)}"])
    error = "" if math.isnan(accuracy.standard_error) else f" ± {100 * accuracy.standard_error:.2f} (standard error)"
    return "\n".join(
        [
            *lines,
            f"- test accuracy of the exact images: {100 * fmean(accuracy.exact):.2f} %",
            f"- test accuracy of the 8-bit images: {100 * fmean(accuracy.eight_bit):.2f} %",
            f"- difference, student by student: {100 * accuracy.difference:+.2f}{error} points\n",
            f"Measured on the test set with {len(accuracy.exact)} {accuracy.weights} students of "
            f"{accuracy.architecture}, protocol {accuracy.protocol}, {accuracy.duration}.",
        ]
    )


def _dataset(distilled: Distilled) -> str:
    """The data set's name on one line; of a path, which tells of somebody's machine, only the end."""
    kind, colon, path = " ".join(distilled.dataset.split()).partition(":")
    return f"{kind}:{Path(path).name}" if colon else kind


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _plain(text: str) -> str:
    """Text that cannot leave its cell or line, and no markup."""
    words = " ".join(text.split())
    return "".join(f"\\{sign}" if sign in "\\`|<>[]*" else sign for sign in words)[:500]
