"""Checkpoints: safetensors shards with a manifest, written whole or not at all, read under any layout."""

from pangu_lab.checkpoint.folder import Checkpoint, latest_checkpoint, list_checkpoints, save_checkpoint
from pangu_lab.checkpoint.source import load_weights, resolve_checkpoint

__all__ = ["Checkpoint", "latest_checkpoint", "list_checkpoints", "load_weights", "resolve_checkpoint",
           "save_checkpoint"]
