"""The exact engine on a CPU: C++ kernels, and residual transforms in PyTorch."""
