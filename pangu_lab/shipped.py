"""Trained models that come with the lab, by name: each a checkpoint folder below ``pangu_lab/weights``, with a card."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
CARD = "card.md"


def shipped_names() -> list[str]:
    return sorted(path.parent.name for path in WEIGHTS.glob("*/manifest.json"))


def shipped_folder(name: Path | str) -> Path | None:
    """The checkpoint of the model called ``name``; None if none of that name comes with the lab, or a file has it."""
    plain = str(name)
    return WEIGHTS / plain if plain in shipped_names() and not Path(plain).exists() else None
