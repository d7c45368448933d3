"""Chooses a network's back end: the C kernels where they can do the work, MindSpore's operators elsewhere."""

from __future__ import annotations

from pangu_lab.config import ModelConfig
from pangu_lab.ops.native.cells import Kernels, kernels_for
from pangu_lab.ops.portable import Portable

Backend = Portable | Kernels  # the same methods


def training_backend(config: ModelConfig) -> Backend:
    """The fastest back end that can train ``config`` on this process's device."""
    return kernels_for(config) or Portable()
