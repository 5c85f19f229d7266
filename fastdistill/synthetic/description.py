"""Everything that distilled images carry besides images and labels: plain values for JSON, and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from fastdistill.data.normalization import Normalization
from fastdistill.data.zca import Whitening
from fastdistill.synthetic.schedule import Schedule

if TYPE_CHECKING:
    from fastdistill.synthetic.distilled import Distilled

FORMAT = "fastdistill-1"
# what reading damaged or hostile files raises: JSON nested too deep is a runtime error, a tensor of a type that torch
# lacks an attribute error, a number beyond a float an arithmetic one
DAMAGE = (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError, OSError)
_T = TypeVar("_T")


def plain_values(distilled: Distilled) -> dict[str, Any]:
    """The part that JSON holds."""
    values = {
        "format": FORMAT,
        "class_names": distilled.class_names,
        "mean": distilled.normalization.mean,
        "std": distilled.normalization.std,
        "dataset": distilled.dataset,
        "augmentation": distilled.augmentation,
        "align_corners": distilled.align_corners,
        "unit": distilled.unit,
        "pixel_range": distilled.pixel_range,
        "config_hash": distilled.config_hash,
        "details": dict(distilled.details),
    }
    if (schedule := distilled.schedule) is not None:
        values["schedule"] = {
            "optimizer": schedule.optimizer,
            "decay": float(schedule.decay),
            "augmentation": schedule.augmentation,
            "align_corners": schedule.align_corners,
        }
    return values


def statistics(distilled: Distilled) -> dict[str, Tensor]:
    """The part that is tensors, by name, on the CPU; often nothing."""
    tensors: dict[str, Tensor] = {}
    whitening, schedule = distilled.normalization.whitening, distilled.schedule
    if whitening is not None:
        tensors |= {"zca.mean": whitening.mean, "zca.matrix": whitening.matrix, "zca.inverse": whitening.inverse}
    if schedule is not None:
        tensors |= {"schedule.rates": schedule.rates, "schedule.images": schedule.images}
        if schedule.momenta is not None:
            tensors["schedule.momenta"] = schedule.momenta
    if distilled.learning_rate is not None:
        tensors["learning_rate"] = distilled.learning_rate
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def described_fields(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of `Distilled` other than images and labels, from what `plain_values` and `statistics` gave.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError: for values of another kind; the caller names the file.
    """
    if values.get("format") != FORMAT:
        raise KeyError(f"format {FORMAT}")
    low, high = of_kind(list, values["pixel_range"])
    whitening = None
    if "zca.matrix" in tensors:
        whitening = Whitening(mean=tensors["zca.mean"], matrix=tensors["zca.matrix"], inverse=tensors["zca.inverse"])
    return {
        "class_names": tuple(of_kind(str, name) for name in of_kind(list, values["class_names"])),
        "normalization": Normalization(
            mean=tuple(map(float, of_kind(list, values["mean"]))),
            std=tuple(map(float, of_kind(list, values["std"]))),
            whitening=whitening,
        ),
        "dataset": of_kind(str, values["dataset"]),
        "augmentation": of_kind(str, values["augmentation"]),
        "align_corners": of_kind(bool, values["align_corners"]),
        "unit": of_kind(str, values["unit"]),
        "pixel_range": (float(low), float(high)),
        "config_hash": of_kind(str, values["config_hash"]),
        "details": {name: of_kind(str, value) for name, value in of_kind(dict, values["details"]).items()},
        "schedule": _schedule(values, tensors),
        "learning_rate": tensors.get("learning_rate"),
    }


def _schedule(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Schedule | None:
    if not {"schedule.rates", "schedule.images", "schedule.momenta"} & tensors.keys() and "schedule" not in values:
        return None
    # files from before there was anything but plain SGD do not say it
    kinds = {"optimizer": str, "decay": float, "augmentation": str, "align_corners": bool}
    given = of_kind(dict, values.get("schedule", {}))
    return Schedule(
        rates=tensors["schedule.rates"],
        images=tensors["schedule.images"],
        momenta=tensors.get("schedule.momenta"),
        **{name: of_kind(kind, given[name]) for name, kind in kinds.items() if given},
    )


def of_kind(kind: type[_T], value: Any) -> _T:
    """The value, if it is of a kind.

    Raises:
        TypeError: if it is not; true and false are no integers.
    """
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return value


def reason(error: BaseException) -> str:
    """The first line of an error, short enough to stand in a sentence."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")
