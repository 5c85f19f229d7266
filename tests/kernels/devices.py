"""Where tests run kernels: a CUDA device, which they are compiled for, or else the CPU, where they are interpreted."""

import inspect

import pytest
import torch

KERNEL_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_kernel_device(test):
    """Hands a test that device as ``device``, and puts it into the test's name, by which tests of a device are chosen.

    Compiled kernels cannot take a CPU's tensors, so there is never more than the one.
    """
    if "device" not in inspect.signature(test).parameters:  # a skip in the place of a test that needs hypothesis
        return test
    return pytest.mark.parametrize("device", [KERNEL_DEVICE], ids=str)(test)
