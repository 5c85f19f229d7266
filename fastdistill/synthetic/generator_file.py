"""A finished generator in one safetensors file: its parameters and noise, and what they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastdistill.files import write_whole
from fastdistill.generator_config import GeneratorConfig
from fastdistill.synthetic.generator import NOISE, PREFIX, Generator

FILE = "generator.safetensors"
_HEADER = "fastdistill"  # the key of the JSON text in the file's metadata
_DAMAGE = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, OSError, SafetensorError)


def save_generator(path: Path, generator: Generator, learned: Mapping[str, Tensor]) -> None:
    """Writes the file whole; equal content gives equal bytes.

    Args:
        path: of the file.
        generator: the generator of a run.
        learned: everything that the run has learned; only the generator's part is written.
    """
    tensors = {
        name: value.detach().float().cpu().contiguous()
        for name, value in learned.items()
        if name == NOISE or name.startswith(PREFIX)
    }
    described = {
        "generator": asdict(generator.config),
        "shape": generator.shape,
        "classes": generator.classes,
        "ipc": generator.ipc,
        "runs": generator.runs,
        "seed": generator.seed,
    }
    write_whole(path, save(tensors, {_HEADER: json.dumps(described, sort_keys=True)}))


def load_generator(folder: Path) -> tuple[Generator, dict[str, Tensor]]:
    """The generator of a finished run, and what it has learned.

    Raises:
        ValueError: where there is none, and for a file that is damaged or of another kind.
    """
    file = folder / FILE
    if not file.is_file():
        raise ValueError(
            f"expected the folder of a finished run with a generator, got {folder} without {FILE}: finish the run, or "
            "choose one whose generator.architecture is not none"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            values: dict[str, Any] = json.loads((opened.metadata() or {})[_HEADER])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        sizes = {name: int(values[name]) for name in ("classes", "ipc", "runs", "seed")}
        shape = tuple(int(side) for side in values["shape"])
        if len(shape) != 3:
            raise ValueError(f"a shape of {len(shape)} sides")
        generator = Generator(config=GeneratorConfig(**values["generator"]), shape=shape, **sizes)
        _check(generator, tensors)
    except _DAMAGE as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"expected a generator in {file}, got a file that is damaged or of another kind ({lines[0][:300]}): write "
            "it again with fastdistill run"
        ) from error
    return generator, tensors


def _check(generator: Generator, tensors: Mapping[str, Tensor]) -> None:
    """Refuses tensors that are not the generator's."""
    shapes = {f"{PREFIX}{name}": (generator.runs, *value.shape) for name, value in generator.module.named_parameters()}
    if generator.config.noise == "learned":
        shapes[NOISE] = (generator.runs, generator.classes, generator.ipc, generator.config.noise_size)
    for name in {**shapes, **tensors}:
        found = tuple(tensors[name].shape) if name in tensors else "nothing"
        if found != shapes.get(name):
            raise ValueError(f"{name} is {found} instead of {shapes.get(name, 'nothing')}")
        if not bool(tensors[name].isfinite().all()):
            raise ValueError(f"{name} is not finite")
