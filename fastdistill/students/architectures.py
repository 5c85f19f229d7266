"""Student architectures by name, built without drawing a weight."""

from __future__ import annotations

import difflib

import torch
from torch import nn

from fastdistill.students.alexcifarnet import AlexCifarNet
from fastdistill.students.alexnet import AlexNet
from fastdistill.students.convnet import ConvNet
from fastdistill.students.gtn import GTNStudent
from fastdistill.students.lenet import LeNet
from fastdistill.students.mlp import MLP
from fastdistill.students.resnet import ResNet18, ResNet18AP
from fastdistill.students.vgg import VGG11

PLAIN = {"mlp": MLP, "lenet": LeNet, "alexnet": AlexNet, "alexcifarnet": AlexCifarNet, "gtn": GTNStudent}
NORMALISED = {"vgg11": VGG11, "resnet18": ResNet18, "resnet18ap": ResNet18AP}
ARCHITECTURES: tuple[str, ...] = ("convnet", *PLAIN, *NORMALISED)


def build_student(
    architecture: str,
    *,
    channels: int,
    height: int,
    width: int,
    num_classes: int,
    depth: int = 3,
    net_width: int = 128,
    norm: str = "instance",
    activation: str = "relu",
    pooling: str = "avg",
    device: str | torch.device = "meta",
) -> nn.Module:
    """Builds one student that maps images ``[n, D, H, W]`` to logits ``[n, C]``, on the meta device unless told.

    A meta student is structure only: call it through ``torch.func.functional_call`` with real parameters and, for batch
    norm and gtn, real buffers. On another device the layers initialise themselves, without moving the global generator.

    Args:
        architecture: a name in `ARCHITECTURES`.
        channels: image channels ``D``.
        height: image height ``H``.
        width: image width ``W``.
        num_classes: ``C``.
        depth: blocks of a convnet, 1 to 8; other architectures ignore it.
        net_width: channels of a convnet's convolutions; other architectures ignore it.
        norm: normalisation of a convnet (``none``, ``instance``, ``group``, ``layer``, ``batch``), or of vgg11 and the
            resnets (``instance``, ``batch``); the others ignore it: they have none, gtn one of its own.
        activation: activation of a convnet (``relu``, ``leaky_relu``, ``sigmoid``, ``swish``, ``softplus``); other
            architectures have their own and ignore it.
        pooling: pooling of a convnet (``avg``, ``max``, ``none``); other architectures ignore it.
        device: where parameters and buffers live.

    Returns:
        A module with ``features(images) -> [n, F]``, the input of its last linear layer, named ``classifier``.

    Raises:
        ValueError: for an unknown name, an option outside these choices, or an image too small for the architecture.
    """
    if architecture not in ARCHITECTURES:
        nearest = difflib.get_close_matches(architecture.lower(), ARCHITECTURES, n=3, cutoff=0.5)
        raise ValueError(
            f"expected an architecture out of {', '.join(ARCHITECTURES)}, got {architecture!r}: "
            + (f"did you mean {' or '.join(nearest)}?" if nearest else "use one of these")
        )
    for name, value in {
        "channels": channels,
        "height": height,
        "width": width,
        "num_classes": num_classes,
        "net_width": net_width,
    }.items():
        if value < 1:
            raise ValueError(f"expected {name} of at least 1, got {value}: give a positive number")
    device = torch.device(device)
    shape = {"channels": channels, "height": height, "width": width, "num_classes": num_classes}
    student: nn.Module
    with torch.random.fork_rng(devices=[]), torch.device("meta" if device.type == "meta" else "cpu"):
        if architecture == "convnet":
            student = ConvNet(
                **shape, depth=depth, net_width=net_width, norm=norm, activation=activation, pooling=pooling
            )
        elif architecture in PLAIN:
            student = PLAIN[architecture](**shape)
        else:
            student = NORMALISED[architecture](**shape, norm=norm)
    return student if device.type == "meta" else student.to(device)
