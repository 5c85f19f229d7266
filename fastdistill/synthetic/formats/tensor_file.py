"""Reading ``.pt`` files of others without running code or believing their sizes."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def read_tensors(path: Path) -> Any:
    """What ``torch.save`` wrote: a tensor, or lists and dictionaries of tensors and plain values, on the CPU.

    The file is refused before it is read where it is no archive as torch writes them since version 1.6, or is
    compressed: torch never does that, and a small file could become any size.

    Raises:
        ValueError: when it is missing, damaged, holds anything else, such as code, or tensors larger than itself.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        size = path.stat().st_size
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("its parts are larger than itself")
        with warnings.catch_warnings(action="ignore"):  # of old kinds of tensors, which damage can name
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged files raises any type, with pages of advice
        found = str(error) if isinstance(error, ValueError) and "\n" not in str(error) else type(error).__name__
        raise ValueError(
            f"expected tensors in {path.name}, got a file that is missing, damaged or holds something else, such as "
            f"code ({found}): save it again with torch.save of a recent torch"
        ) from error
    return content


def plain_tensor(value: Any, name: str) -> Tensor:
    """The value, if it is an ordinary tensor no larger than the storage it came in.

    Raises:
        ValueError: for anything else; a stride of 0 can claim any size.
    """
    ordinary = isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
    if not ordinary or value.is_quantized:
        raise ValueError(f"expected {name} as a dense tensor, got {type(value).__name__}: save a plain tensor")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"expected {name} to hold its {value.numel()} values, got fewer: save a contiguous tensor")
    tensor: Tensor = value.detach()
    return tensor
