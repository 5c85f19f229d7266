"""What the settings of several methods share: words, and checks of them. Nothing here imports torch."""

from __future__ import annotations

OPTIMIZERS = ("sgd", "momentum", "adam")  # of students
STORAGES = ("same", "bfloat16")  # of the weights along a trajectory
PAD_CROP_FLIP = "pad_crop_flip"
AUGMENTATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


def strategy(augmentation: str, *others: str, name: str = "augmentation") -> None:
    """Refuses a DSA strategy of operations that there are not; ``others`` are words that are taken as well."""
    unknown = [operation for operation in augmentation.split("_") if operation not in AUGMENTATIONS]
    if unknown and augmentation not in ("none", *others):
        raise ValueError(
            f"expected {name} of {', '.join(AUGMENTATIONS)} joined by '_', or {' or '.join((*others, 'none'))}, got "
            f"{augmentation!r}: correct {unknown[0]!r}"
        )


def shares(**values: float) -> None:
    """Refuses named values outside of [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"expected {name} in [0, 1), got {value}: averages diverge from 1 on")


def one_way_to_save(keep: int, storage: str) -> None:
    """Refuses two ways at once to store a trajectory in less memory."""
    if keep > 1 and storage != "same":
        raise ValueError(
            f"expected either keep above 1 or a storage of its own, got {keep} and {storage}: choose one way to save "
            "memory"
        )
