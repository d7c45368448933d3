"""Every text that is shown in more than one language: the widgets', the page's, the planner's reasons.

``texts.json`` beside this file has sections of keys, and for each key its text in every language, in the order of
``LANGUAGES``. A text may have gaps to fill, ``{step}``. To add a language, add its name and one more text everywhere.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "zh")


@functools.cache
def catalogue(language: str) -> dict[str, Any]:
    """All texts in one language: section → key → text."""
    return _in(
        LANGUAGES.index(language), json.loads((Path(__file__).parent / "texts.json").read_text(encoding="utf-8"))
    )


def _in(place: int, found: Any) -> Any:
    """What was read, with the text at ``place`` for each list of them."""
    return found[place] if isinstance(found, list) else {key: _in(place, value) for key, value in found.items()}


def text(language: str, section: str, key: str, **values: Any) -> str:
    """One text with its gaps filled; a key that its section lacks is looked for in ``common``, and then stands for itself."""
    texts = catalogue(language)
    found = texts[section].get(key, texts["common"].get(key, key))
    return found.format(**values) if values else found
