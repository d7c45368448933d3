"""The notebook interface: what a person sees and turns in JupyterLab. It uses pangu_lab's public functions alone."""

from __future__ import annotations

from widgets.progress import notebook_progress

__all__ = ["notebook_progress"]
