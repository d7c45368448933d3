"""The bar's words: time left, and the last one."""

from __future__ import annotations

from widgets.progress import time_left


def test_time_left_is_said_once_it_can_be_known():
    assert time_left(0, 10, 5.0) == "" and time_left(3, None, 5.0) == ""
    assert time_left(5, 10, 65.0) == "1:05 left"
    assert time_left(10, 10, 125.0) == "done in 2:05"


class Shown:
    """What ``display`` was asked to show, and to show again."""

    def __init__(self, monkeypatch) -> None:
        import IPython.display

        self.texts, self.boxes = [], []
        monkeypatch.setattr(IPython.display, "display", self.display)

    def display(self, box, display_id):
        self.boxes.append(box)
        self.texts.append(box._repr_mimebundle_()["text/plain"])
        return self

    def update(self, box):
        self.texts.append(box._repr_mimebundle_()["text/plain"])


def test_the_bar_follows_the_work(monkeypatch):
    from widgets import notebook_progress

    shown = Shown(monkeypatch)
    progress = notebook_progress("training")
    assert not shown.boxes  # nothing was done
    progress(3, 12, "loss 5.1")
    bar, news = shown.boxes[0].children
    assert (bar.value, bar.max) == (3, 12) and news.value.startswith("loss 5.1") and news.value.endswith("left")
    for _ in range(2):
        progress(12, 12, "loss 4.9")
    assert len(shown.texts) == 2 and shown.texts[0].startswith("training: loss 5.1 · 0:00 left")
    assert shown.texts[1] == "training: loss 4.9 · done in 0:00"
