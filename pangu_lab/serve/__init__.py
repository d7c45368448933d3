"""Serving an exported bundle: the page to write with."""

from __future__ import annotations

from pangu_lab.serve.page import Page, build_page, serve_page

__all__ = ["Page", "build_page", "serve_page"]
