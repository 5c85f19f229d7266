"""Writing a run's images in the forms that other programs read, with what the form loses measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastdistill.evaluation.evaluate import Evaluation
from fastdistill.loop.examination import examination, images_file
from fastdistill.loop.plan import resolve_device
from fastdistill.loop.record import BEST_FILE
from fastdistill.progress import Silent
from fastdistill.synthetic.distilled import FILE, Distilled, load_file
from fastdistill.synthetic.formats import hf, png, pt
from fastdistill.synthetic.formats.card import LOSSY, Measurement, card_text
from fastdistill.synthetic.formats.eight_bit import check_channels, eight_bit
from fastdistill.synthetic.formats.folder import CARD_FILE, refuse_existing, whole_folder

_WRITERS: dict[str, Callable[[Distilled, Path, str], None]] = {"png": png.write, "pt": pt.write, "hf": hf.write}
TARGETS = ("safetensors", *_WRITERS)


def export_run(
    folder: Path,
    *,
    to: str,
    output: Path | None = None,
    images: str = "last",
    students: int = 5,
    device: str = "auto",
    source: str | None = None,
    root: str | None = None,
    progress: Silent | None = None,
) -> Path:
    """Exports a run's images; `fastdistill.load` reads every form back.

    ``png`` and the pictures of ``hf`` hold 8 bits a value. For these the exact and the 8-bit images are judged by the
    same fresh students, on the run's test set by its protocol, and the card says what was lost.

    Args:
        folder: the run folder, or one of its files of images.
        to: ``safetensors``, ``png``, ``pt`` or ``hf``.
        output: the folder to create; ``exports/TO`` in the run folder by default.
        images: ``last`` or ``best`` (on validation).
        students: fresh students per run that measure the loss; 0 leaves it unmeasured.
        device: auto, cpu or cuda.
        source: where the test set is, where it has moved; the run's by default.
        root: folder of torchvision's sets; the run's by default.
        progress: what is said meanwhile.

    Returns:
        The folder, written whole or not at all.

    Raises:
        ValueError: for a folder without a finished run, a form that cannot hold its images, or an output that exists.
        OSError: when something cannot be written.
    """
    if to not in TARGETS:
        raise ValueError(f"expected an export to one of {', '.join(TARGETS)}, got {to!r}: choose one of these")
    if students < 0:
        raise ValueError(f"expected 0 or more students to measure the loss, got {students}: 0 leaves it unmeasured")
    resolve_device(device)  # a device that is not there is no reason to leave the accuracy out
    file = images_file(folder, images)
    distilled = load_file(file)
    target = output or file.parent / "exports" / (f"{to}-best" if file.name == BEST_FILE else to)
    refuse_existing(target)
    accuracy: Measurement | str = "not measured"
    if to in LOSSY:
        check_channels(distilled.images.shape[2])
        if to == "hf":
            hf.require_arrow()
        if students:
            accuracy = _measure(
                file.parent, distilled, students, device, source=source, root=root, progress=progress or Silent()
            )
    card = card_text(distilled, to, accuracy)
    with whole_folder(target) as temporary:
        if to in _WRITERS:
            _WRITERS[to](distilled, temporary, card)
        else:
            (temporary / FILE).write_bytes(file.read_bytes())
            (temporary / CARD_FILE).write_text(card, encoding="utf-8")
    return target


def _measure(
    folder: Path,
    distilled: Distilled,
    students: int,
    device: str,
    *,
    source: str | None,
    root: str | None,
    progress: Silent,
) -> Measurement | str:
    """Accuracies of the exact and the 8-bit images, or why there are none."""
    lossy = eight_bit(distilled)
    try:
        test = examination(folder, distilled, student={}, students=students, device=device, source=source, root=root)
    except ValueError as error:
        progress.say(f"the accuracy of the 8-bit images is not measured: {error}")
        # a card is there to be published: what the error says of this machine is no part of it
        return "not measured, for want of the run's test set or configuration"
    exact: Evaluation = test.judge(distilled, progress=progress, title="testing: exact images")
    rounded = test.judge(lossy, progress=progress, title="testing: 8-bit images")
    return Measurement(
        exact=exact.per_student,
        eight_bit=rounded.per_student,
        protocol=exact.protocol,
        architecture=test.student.architecture,
        duration=exact.duration,
        weights=test.student.initialization,
    )
