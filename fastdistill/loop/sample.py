"""Drawing labelled images from the generator of a finished run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from fastdistill.checks import at_least, at_most
from fastdistill.report.figures import image_grid, save_picture
from fastdistill.synthetic.distilled import load_file
from fastdistill.synthetic.formats.folder import MAX_VALUES, refuse_existing, whole_folder
from fastdistill.synthetic.generator_file import load_generator

FILE, PICTURE = "distilled.safetensors", "images.png"
_PICTURED = 200  # images a run that one picture shows


def sample_run(folder: Path, *, num_images: int, seed: int = 0, output: Path | None = None) -> Path:
    """Draws images from a run's generator, class after class in turn.

    Args:
        folder: the run folder.
        num_images: how many of each run.
        seed: of the noise beyond that which the generator was trained on.
        output: the folder to create; ``samples/N-SEED`` in the run folder by default.

    Returns:
        The folder, with the images and their labels as ``fastdistill.load`` reads them, and a picture of the first.

    Raises:
        ValueError: for a run without a finished generator, fewer than one image, or an output that exists.
        OSError: when something cannot be written.
    """
    at_least(1, num_images=num_images)
    at_least(0, seed=seed)
    generator, learned = load_generator(folder)
    run = load_file(folder)
    most = MAX_VALUES // max(generator.runs * math.prod(generator.shape), 1)
    at_most(most, num_images=num_images)
    target = output or folder / "samples" / f"{num_images}-{seed}"
    refuse_existing(target)
    with torch.no_grad():
        images = generator.sample(learned, num_images, seed=seed)
    labels = torch.arange(num_images) % generator.classes
    # steps and rates belong to the images that the run has learned with them
    drawn = replace(run, images=images, labels=labels, schedule=None, learning_rate=None)
    low, high = drawn.pixel_range
    shown = ((drawn.pixels() - low) / max(high - low, 1e-12))[:, :_PICTURED]
    with whole_folder(target) as temporary:
        drawn.save(temporary / FILE)
        save_picture(temporary / PICTURE, image_grid(shown, labels[:_PICTURED], class_names=drawn.class_names))
    return target
