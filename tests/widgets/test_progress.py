"""The bar's words: time left, and the last one."""

from __future__ import annotations

from widgets.progress import time_left


def test_time_left_is_said_once_it_can_be_known():
    assert time_left(0, 10, 5.0) == "" and time_left(3, None, 5.0) == ""
    assert time_left(5, 10, 65.0) == "1:05 left"
    assert time_left(10, 10, 125.0) == "done in 2:05"


def test_the_bar_follows_the_work(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    from widgets import notebook_progress

    progress = notebook_progress("training")
    progress(3, 12, "loss 5.1")
    bar, news = shown[0].children
    assert (bar.value, bar.max) == (3, 12) and news.value.startswith("loss 5.1") and news.value.endswith("left")
