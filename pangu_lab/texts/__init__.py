"""Every text that is shown in more than one language: the widgets', the page's, the planner's reasons.

``en.json`` and ``zh.json`` beside this file hold the same sections and keys. A text may have gaps to fill, ``{step}``. To
add a text, write it into both; to add a language, write its file and its name into ``LANGUAGES``.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "zh")


@functools.lru_cache(maxsize=None)
def catalogue(language: str) -> dict[str, Any]:
    """All texts in one language: section → key → text."""
    return json.loads((Path(__file__).parent / f"{language}.json").read_text(encoding="utf-8"))


def text(language: str, section: str, key: str, **values: Any) -> str:
    """One text with its gaps filled; a key that its section lacks is looked for in ``common``, and then stands for itself."""
    texts = catalogue(language)
    found = texts[section].get(key, texts["common"].get(key, key))
    return found.format(**values) if values else found
