"""Networks trained on the real images, for the arms and tests of a comparison that begin with pretrained weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import save

from fastdistill.comparison_config import ComparisonConfig
from fastdistill.data.sources import load_configured
from fastdistill.data.split import stratified_split
from fastdistill.derivatives.layout import Layout
from fastdistill.evaluation.feature_networks import train_feature_networks
from fastdistill.files import write_whole
from fastdistill.loop.environment import prepare_process
from fastdistill.loop.plan import resolve_device
from fastdistill.progress import Silent
from fastdistill.students.ensemble import student_module
from fastdistill.students.training import Training


def pretrain(config: ComparisonConfig, progress: Silent) -> None:
    """Trains networks of the first arm that begins with them (else of the first) and keeps one file of each.

    They see the arm's training images, without its validation split. Where all files are there already, nothing
    happens.
    """
    if all(_file(config, number).exists() for number in range(config.pretraining.networks)):
        return
    users = [arm for arm in config.arms.values() if arm.student.pretrained == str(config.pretrained)]
    arm = (users or list(config.arms.values()))[0]
    student = replace(arm.student, initialization="fresh", pretrained="")
    data = load_configured(arm.data)
    kept, _ = stratified_split(data.train.labels, arm.data.validation_fraction, arm.seed)
    train = data.train.subset(kept).to(resolve_device(arm.device))
    module = student_module(student, train.shape, train.num_classes)
    if arm.threads:
        prepare_process(arm.threads)
    networks = train_feature_networks(
        module,
        train,
        Training(epochs=config.pretraining.epochs, momentum=0.9),
        count=config.pretraining.networks,
        seed=arm.seed,
        distribution=student.weights,
        progress=progress,
    )
    layout = Layout.of(module)
    for number, weights in enumerate(networks.weights):
        tensors = {name: tensor.contiguous().cpu() for name, tensor in layout.views(weights).items()}
        tensors |= {name: tensor[number].contiguous().cpu() for name, tensor in networks.buffers.items()}
        write_whole(_file(config, number), save(tensors))


def _file(config: ComparisonConfig, number: int) -> Path:
    return config.pretrained / f"{number:02d}.safetensors"
