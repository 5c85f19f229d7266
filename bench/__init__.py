"""Benchmarks of fastdistill, and the plain implementations that they are measured against."""
