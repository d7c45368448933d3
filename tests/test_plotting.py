"""Pictures are written small, and look as they were drawn."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from pangu_lab.plotting import new_figure, save_png


def test_a_picture_takes_half_the_room_and_keeps_white_and_rare_colours(tmp_path):
    figure = new_figure(6, 3)
    axes = figure.subplots()
    axes.imshow(np.random.default_rng(0).random((12, 40)), cmap="Blues")
    axes.set_title("one word is red", color="#e45756")
    whole = BytesIO()
    figure.savefig(whole, dpi=100)
    small = save_png(figure, tmp_path / "small.png", 100)
    drawn, kept = (np.array(Image.open(source).convert("RGB")).astype(int) for source in (whole, small))
    assert small.stat().st_size < 0.6 * len(whole.getvalue()) and kept.shape == drawn.shape
    assert (kept[drawn.min(-1) == 255] == 255).all()
    assert np.abs(kept - drawn).max() < 16
    red = np.abs(drawn - [0xE4, 0x57, 0x56]).max(-1) < 3
    assert red.any() and np.abs(kept[red] - [0xE4, 0x57, 0x56]).max() < 8
