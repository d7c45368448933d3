"""A trained model as a folder that runs without model code: MindIR graphs, tokenizer, description, checksums."""

from __future__ import annotations

from pangu_lab.export.bundle import export_bundle, export_run
from pangu_lab.export.loading import Bundle, load_bundle

__all__ = ["Bundle", "export_bundle", "export_run", "load_bundle"]
