"""The CUDA kernels, by name: twins of those in cpu.py, as far as they exist."""

from sparse_dnm.kernels.gpu_propagate import (
    SUMMING,
    WIDTH,
    backward,
    edge_gradients,
    forward,
    input_gradients,
    neuron_gradients,
)

__all__ = ["SUMMING", "WIDTH", "backward", "edge_gradients", "forward", "input_gradients", "neuron_gradients"]
