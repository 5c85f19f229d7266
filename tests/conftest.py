"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # before anything imports triton: its kernels are interpreted where there is nothing to compile them for
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure():
    """One thread each for tests and what they start: workers that share the cores would starve each other by more."""
    threads = os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(threads))


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


@pytest.fixture
def real_data():
    """The folder of real data sets, in torchvision's layout."""
    folder = os.environ.get("FASTDISTILL_DATA", "")
    if not folder:
        pytest.skip("set FASTDISTILL_DATA to a folder with MNIST, FashionMNIST and CIFAR-10")
    return Path(folder)
