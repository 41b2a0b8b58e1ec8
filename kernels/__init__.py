"""Triton kernels of the GPU engine, imported as ``mlic_fast.kernels``: one file a kernel family."""
