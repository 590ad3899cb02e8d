"""Micro-benchmarks run as the trainer does: torch on one thread, the engine on its own threads."""

import torch

torch.set_num_threads(1)
