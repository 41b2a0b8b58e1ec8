"""The engine ``gpu``: Triton kernels, CUDA graphs, transforms."""
