"""Serving a model: one scheduler, an HTTP API and a web page."""

from __future__ import annotations

from pangu_lab.serve.background import BackgroundServer, start_server
from pangu_lab.serve.limits import Limits, parse_limits
from pangu_lab.serve.load import Load, drive
from pangu_lab.serve.pictures import plot_loads
from pangu_lab.serve.scheduler import Scheduler
from pangu_lab.serve.server import Server, serve

__all__ = [
    "BackgroundServer",
    "Limits",
    "Load",
    "Scheduler",
    "Server",
    "drive",
    "parse_limits",
    "plot_loads",
    "serve",
    "start_server",
]
