"""The plain-torch truth of every operator, one file each: oracle of tests, CPU path, yardstick of benchmarks.

A Triton kernel is right when it equals these. They take and return what the operators do, without checking it.
"""
