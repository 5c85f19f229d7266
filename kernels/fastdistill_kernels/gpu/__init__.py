"""Triton kernels, their configurations and launchers; imported only when a tensor on a CUDA device asks for one."""
