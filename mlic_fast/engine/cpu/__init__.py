"""The CPU backend of the exact engine: C++ kernels."""
