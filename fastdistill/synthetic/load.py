"""Reading distilled images from whatever holds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastdistill.data.normalization import Normalization
from fastdistill.synthetic.distilled import FILE, Distilled, load_file
from fastdistill.synthetic.formats import foreign, png, pt
from fastdistill.synthetic.formats.folder import read_target

_READERS: dict[str, Callable[[Path], Distilled]] = {"png": png.read, "pt": pt.read}


def load(path: str | Path, *, dataset: str | None = None, normalization: Normalization | None = None) -> Distilled:
    """Reads distilled images from a run folder, any export of one, or the tensor files of other programs.

    Args:
        path: a run folder, a ``distilled.safetensors`` file, a folder that ``fastdistill export`` wrote, a
            ``res_*.pt`` file, or a folder with ``images.pt`` and ``labels.pt``.
        dataset: for tensor files of other programs, which do not say it: the torchvision set whose published
            statistics the images were normalised with, such as ``cifar10``.
        normalization: for those as well, where it is another.

    Returns:
        The images with everything needed to train on them; exact, except for the PNG export.

    Raises:
        ValueError: when there is nothing of the kind, it is damaged, or a foreign file's normalisation is not known.
    """
    place = Path(path)
    target = read_target(place)
    foreigner = target is None and (
        place.suffix in foreign.SUFFIXES if place.is_file() else foreign.holds_tensor_files(place)
    )
    if foreigner and not (place / FILE).is_file():
        return foreign.read(place, dataset=dataset, normalization=normalization)
    if dataset is not None or normalization is not None:
        raise ValueError(
            f"expected a dataset or normalization only with tensor files of other programs, got one for {place}, which "
            "says its own: leave it out"
        )
    if target in _READERS:
        return _READERS[target](place)
    if place.is_file() or (place / FILE).is_file():
        return load_file(place)
    raise ValueError(
        f"expected a run folder, a {FILE} file, an export or tensor files at {place}, found none: finish the run or "
        "correct the path"
    )
