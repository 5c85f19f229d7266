"""Operators of student-batched dataset distillation, on torch and triton alone.

Every operator takes an explicit leading student axis and returns values *and* cotangents as plain outputs: nothing
here records a graph, so a dual tensor handed in is refused instead of losing its tangent silently.

Letters: ``S`` students, ``G`` gradient groups, ``P`` parameters of one student (padding included).
"""

from fastdistill_kernels.match import DISTANCES, RowTable, match
from fastdistill_kernels.philox import normal, philox, uniform

__all__ = ["DISTANCES", "RowTable", "match", "normal", "philox", "uniform"]
