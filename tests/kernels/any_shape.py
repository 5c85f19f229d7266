"""Hypothesis as kernels' tests use it, or a skip that names it: machines with a GPU may lack it."""

import pytest

from tests.kernels.comparing import poison

try:
    from hypothesis import given as given_unpoisoned
    from hypothesis import settings
    from hypothesis import strategies as st

    def given(**strategies):
        """Hypothesis' own, every example poisoned: a fixture would last for all of them, and is refused."""
        return lambda test: given_unpoisoned(**strategies)(poison()(test))
except ModuleNotFoundError:

    class _Anything:
        """Stands for every strategy."""

        def __getattr__(self, name):
            return lambda *arguments, **options: self

    def given(**_):
        """Puts a skip in a test's place."""

        def replace(_):
            @pytest.mark.skip(reason="needs hypothesis")
            def test():
                raise AssertionError

            return test

        return replace

    def settings(*_, **__):
        """Changes nothing."""
        return lambda test: test

    st = _Anything()

__all__ = ["given", "settings", "st"]
