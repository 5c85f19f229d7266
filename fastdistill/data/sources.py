"""Real data by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path

from fastdistill.config import DataConfig
from fastdistill.data.archive import read_archive
from fastdistill.data.arrays import RawData, from_arrays, image_tensor, label_tensor
from fastdistill.data.digits import read_digits
from fastdistill.data.normalization import Normalization, channel_normalization, zca_normalization
from fastdistill.data.split import TEST_SPLIT_SEED, stratified_split
from fastdistill.data.store import ImageStore
from fastdistill.data.torchvision_sets import NORMALIZATIONS, read_torchvision
from fastdistill.draws import Purpose

NAMES = ("digits", *NORMALIZATIONS, "folder:PATH", "npz:PATH")


@dataclass(frozen=True, kw_only=True, eq=False)
class RealData:
    """A data set ready for use.

    Attributes:
        train: training images; a validation split comes out of these.
        test: test images, with the classes and the normalisation of `train`.
        name: the source it was loaded from.

    Raises:
        ValueError: if there is no test image, or sizes, dtypes or classes of the two differ.
    """

    train: ImageStore
    test: ImageStore
    name: str

    def __post_init__(self) -> None:
        if not len(self.test):
            raise ValueError(
                f"expected test images of {self.name}, got none: give test images, more images per class or a larger "
                "test fraction"
            )
        sides = [
            (list(store.shape), store.images.dtype, store.num_classes, store.class_names)
            for store in (self.train, self.test)
        ]
        if sides[0] != sides[1]:
            raise ValueError(
                f"expected training and test images of {self.name} of one size, one dtype and the same classes, got "
                f"{' and '.join(f'{shape} {dtype} with {count} classes' for shape, dtype, count, _ in sides)}: "
                "make them alike"
            )


def load_source(
    source: str,
    *,
    root: str = "data",
    download: bool = False,
    zca: bool = False,
    test_fraction: float = 0.2,
    normalization: Normalization | None = None,
) -> RealData:
    """Loads real data, on the CPU.

    Args:
        source: ``digits``, ``mnist``, ``fashionmnist``, ``svhn``, ``cifar10``, ``cifar100``, ``folder:PATH`` (one
            sub-folder per class, see `read_folder`) or ``npz:PATH`` (see `read_archive`).
        root: folder of the torchvision sets' files.
        download: whether torchvision may fetch missing files.
        zca: whiten with a ZCA fitted on the training images instead of subtracting mean and dividing by std.
        test_fraction: share of every class held out as test images where a folder or archive has none of its own;
            the choice does not depend on the run's seed.
        normalization: statistics to use; if not given, the published ones of the torchvision sets, else those of the
            training images.

    Raises:
        ValueError: if the source is unknown, or its data are missing, damaged or do not fit together.
    """
    if zca and normalization is not None:
        raise ValueError("expected either ZCA or a given normalisation, got both: drop one of them")
    raw = _read(source, Path(root).expanduser(), download=download)
    train = from_arrays(*raw.train, class_names=raw.class_names)
    if raw.test is None:
        kept, held_out = stratified_split(train.labels, test_fraction, TEST_SPLIT_SEED, purpose=Purpose.TEST_SPLIT)
        train, test = train.subset(kept), train.subset(held_out)
    else:
        images = image_tensor(raw.test[0])
        labels = label_tensor(raw.test[1], len(images))
        # its own channels, until RealData has found the two alike
        plain = Normalization(mean=(0.0,) * images.shape[1], std=(1.0,) * images.shape[1])
        test = ImageStore(images=images, labels=labels, class_names=train.class_names, normalization=plain)
    data = RealData(train=train, test=test, name=source)
    if zca:
        statistics = zca_normalization(train.images)
    else:
        statistics = normalization or raw.normalization or channel_normalization(train.images)
    return replace(data, train=replace(train, normalization=statistics), test=replace(test, normalization=statistics))


def _read(source: str, root: Path, *, download: bool) -> RawData:
    kind, _, path = source.partition(":")
    if source == "digits":
        return read_digits()
    if source in NORMALIZATIONS:
        return read_torchvision(source, root, download=download)
    if kind == "folder" and path:
        from fastdistill.data.folder import read_folder  # the one that needs a library of pictures

        return read_folder(Path(path).expanduser())
    if kind == "npz" and path:
        return read_archive(Path(path).expanduser())
    by_kind = {name.partition(":")[0]: name for name in NAMES}
    nearest = [by_kind[match] for match in difflib.get_close_matches(kind.lower(), by_kind)]
    raise ValueError(
        f"expected a data source out of {', '.join(NAMES)}, got {source!r}: "
        + (f"did you mean {' or '.join(nearest)}?" if nearest else "use one of these")
    )


def load_configured(data: DataConfig) -> RealData:
    """The real images of a configuration; raises as `load_source` does."""
    return load_source(data.source, root=data.root, download=data.download, zca=data.zca)
