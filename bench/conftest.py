"""Micro-benchmarks run as the trainer does: torch on one thread, the engine's threads apart."""

import torch

torch.set_num_threads(1)
