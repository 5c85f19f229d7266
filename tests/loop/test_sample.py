"""Labelled images from the generator of a finished run."""

import pytest
import torch

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.evaluation.evaluate import evaluate_images
from fastdistill.evaluation.protocols import protocol
from fastdistill.generator_config import GeneratorConfig
from fastdistill.loop.run import run
from fastdistill.loop.sample import sample_run
from fastdistill.method_configs import DistributionConfig
from fastdistill.students.ensemble import student_module
from fastdistill.synthetic.load import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    settings = RunConfig(
        output=str(tmp_path_factory.mktemp("runs")),
        ipc=2,
        runs=2,
        student=StudentConfig(width=4, depth=2),
        method=DistributionConfig(steps=2, real_batch=16),
        generator=GeneratorConfig(architecture="upsampling", width=8, noise_size=5),
        evaluation=EvaluationConfig(students=1),
        device="cpu",
    )
    return run(settings, load_source("digits"), judge=False).folder


def test_as_many_as_asked_for_class_after_class(folder):
    target = sample_run(folder, num_images=33)
    assert target == folder / "samples" / "33-0" and (target / "images.png").is_file()
    drawn, own = load(target), load(folder)
    assert drawn.images.shape == (2, 33, 1, 8, 8)
    assert drawn.labels.tolist() == [number % 10 for number in range(33)]
    # the noise that was learned comes first
    trained = own.images.unflatten(1, (10, 2)).transpose(1, 2).flatten(1, 2)
    assert torch.allclose(drawn.images[:, :20], trained, atol=1e-6)
    assert drawn.class_names == own.class_names and drawn.schedule is None


def test_they_train_networks(folder, tmp_path):
    data = load_source("digits")
    drawn = load(sample_run(folder, num_images=40, seed=3, output=tmp_path / "drawn"))
    found = evaluate_images(
        student_module(StudentConfig(width=4, depth=2), (1, 8, 8), 10),
        drawn.images,
        drawn.labels,
        data.test,
        protocol("default", dataset="digits", architecture="convnet", norm="instance").with_epochs(2),
        students=1,
        seed=0,
    )
    assert len(found.per_student) == 2 and found.images == 40


def test_nothing_is_written_over_and_wrong_numbers_are_named(folder, tmp_path):
    sample_run(folder, num_images=3, output=tmp_path / "there")
    with pytest.raises(ValueError, match=r"expected nothing at .*there to export to, got something there"):
        sample_run(folder, num_images=3, output=tmp_path / "there")
    with pytest.raises(ValueError, match="expected num_images of at least 1, got 0: raise it"):
        sample_run(folder, num_images=0)
    with pytest.raises(ValueError, match=r"expected num_images of at most .*, got 1000000000000: lower it"):
        sample_run(folder, num_images=10**12)
    with pytest.raises(ValueError, match="expected the folder of a finished run with a generator"):
        sample_run(tmp_path, num_images=3)
