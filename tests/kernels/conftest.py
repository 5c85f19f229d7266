"""Fixtures of kernel tests."""

import pytest

from tests.kernels.comparing import poison, tf32_products


@pytest.fixture(scope="module", autouse=True)
def tf32_is_tf32():
    """Products in TF32 lose digits where they are interpreted, too."""
    with tf32_products():
        yield


@pytest.fixture
def poisoned():
    """Memory that nobody wrote shows up; tests of `any_shape.given` are poisoned without asking."""
    with poison():
        yield
