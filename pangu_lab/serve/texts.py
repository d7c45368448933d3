"""The page's language, its texts (section ``page`` of ``pangu_lab/texts``), and the presets of its controls."""

from __future__ import annotations

from pangu_lab import texts

LANGUAGES = {language: texts.catalogue(language)["page"] for language in texts.LANGUAGES}

# temperature, top-p, top-k, repetition penalty
PRESETS: dict[str, tuple[float, float, int, float]] = {
    "exact": (0.0, 1.0, 0, 1.0),
    "balanced": (0.8, 0.9, 0, 1.05),
    "wild": (1.1, 0.98, 0, 1.05),
}


def language_of(accepted: str) -> str:
    """The language of a browser's ``Accept-Language`` header: zh where Chinese comes before English, else en."""
    for part in accepted.lower().split(","):
        language = part.split(";")[0].strip()[:2]
        if language in LANGUAGES:
            return language
    return "en"
