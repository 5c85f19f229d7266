"""What a test needs whose programs are compiled for a CPU, and not only traced."""

import pytest

from fastdistill.derivatives.plan import nothing_compiles

compiles = pytest.mark.skipif(bool(nothing_compiles()), reason="needs torch 2.13 and a C++ compiler")
