"""Textbook gradient-matching distillation: the oracle of the tests and the yardstick of the benchmarks.

One student at a time, a Python loop over the classes, a graph of the gradient's graph. It imports nothing from
fastdistill, so that agreement between the two is evidence. Shapes: `C` classes, `M` synthetic images per class,
`B` real images per class, `n` images of any kind, `D, H, W` channels, height and width.
"""
