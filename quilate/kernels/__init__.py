"""Fused operations in C++ for what PyTorch does slowly on a CPU, each beside a pure torch path that is always there."""
