"""Verbs about the bundle: export, serve."""

from __future__ import annotations

import argparse
from typing import Any

from pangu_lab.cli.common import add_verb, finish


def register(verbs: Any) -> None:
    pass
