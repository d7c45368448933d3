"""Serving an exported bundle: one scheduler, an HTTP API and a page to write with."""

from __future__ import annotations

from pangu_lab.serve.limits import Limits, parse_limits
from pangu_lab.serve.scheduler import Scheduler
from pangu_lab.serve.server import Server, serve

__all__ = ["Limits", "Scheduler", "Server", "parse_limits", "serve"]
