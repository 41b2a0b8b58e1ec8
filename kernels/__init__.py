"""Triton kernels of the GPU engine, imported as ``mlic_fast.kernels``: one file a kernel family.

Every file has, in this order: its formula, shapes, bytes and operations; the plain PyTorch function
(``*_twin``) that its kernel equals bit for bit; the kernel; its launcher. What they launch can be
compiled ahead of time (:mod:`mlic_fast.kernels.compile`). The judge of all is
:mod:`mlic_fast.engine.arithmetic`; but of :mod:`~mlic_fast.kernels.epilogues`, which serve the
transforms and equal their twins within rounding, it is the float model.
"""
