"""Checkpoints: safetensors shards with a manifest, written whole or not at all, read under any layout."""

from pangu_lab.checkpoint.convert import CKPT_FILE, convert_checkpoint
from pangu_lab.checkpoint.folder import Checkpoint, latest_checkpoint, list_checkpoints, save_checkpoint
from pangu_lab.checkpoint.made_release import write_release
from pangu_lab.checkpoint.mindspore_ckpt import index_ckpt
from pangu_lab.checkpoint.published import PUBLISHED, SHARDED, SINGLE, recognise
from pangu_lab.checkpoint.source import largest_difference, load_weights, open_weights, resolve_checkpoint

__all__ = [
    "CKPT_FILE",
    "PUBLISHED",
    "SHARDED",
    "SINGLE",
    "Checkpoint",
    "convert_checkpoint",
    "index_ckpt",
    "largest_difference",
    "latest_checkpoint",
    "list_checkpoints",
    "load_weights",
    "open_weights",
    "recognise",
    "resolve_checkpoint",
    "save_checkpoint",
    "write_release",
]
