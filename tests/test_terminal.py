"""What the command line shows: results and progress on different streams, plain where there is no terminal."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from pangu_lab import terminal


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0 s"), (59, "59 s"), (75, "1 min 15 s"), (3700, "1 h 1 min"), (-1, "0 s")]
)
def test_durations_read_well(seconds, text):
    assert terminal.duration(seconds) == text


def test_results_go_to_stdout_and_progress_to_stderr(capsys):
    with terminal.progress_bar("prepare") as progress:
        progress(1, 4, "9 tokens/s")
        terminal.say("a result")
        progress(4, 4, "12 tokens/s")
    out, err = capsys.readouterr()
    assert out == "a result\n" and err == "prepare: 4 of 4 (100%), 12 tokens/s\n"


def test_without_a_terminal_a_line_comes_now_and_then_with_the_time_left(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with terminal.progress_bar("train") as progress:
        progress(0, None, "compiling")
        clock[0] += 9.0
        for step in range(10, 41):  # a resumed run begins at 10
            clock[0] += 1.0
            progress(step, 100, "loss 3.1")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and lines[0] == "train: 10 of 100 (10%), loss 3.1"
    assert lines[1] == "train: 20 of 100 (20%), 1 min 20 s left, loss 3.1"
    assert lines[-1].startswith("train: 40 of 100")


def test_a_new_piece_of_work_starts_the_estimate_anew(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with terminal.progress_bar("demo") as progress:
        for seconds, done, total in ((0, 0, 10), (5, 10, 10), (100, 0, 50), (120, 10, 50)):
            clock[0] = seconds
            progress(done, total, "")
    assert "demo: 10 of 50 (20%), 1 min 20 s left" in capsys.readouterr().err.splitlines()


def test_an_unknown_total_and_no_call_at_all_are_fine(capsys):
    with terminal.progress_bar("idle"):
        pass
    assert capsys.readouterr().err == ""
    with terminal.progress_bar("count") as progress:
        progress(12345, None, "")
    assert capsys.readouterr().err == "count: 12,345\n"


def test_a_failure_inside_leaves_no_bar_behind():
    with pytest.raises(KeyboardInterrupt), terminal.progress_bar("train"):
        raise KeyboardInterrupt
    assert terminal._active_bar is None


def test_a_table_outside_a_terminal_is_not_cut(capsys):
    terminal.table(("run", "step", "loss", "speed"), [("春" * 60, 1200, 3.14159, 12431.2), ("a", None, None, 0.5)])
    out = capsys.readouterr().out
    for text in ("春" * 60, "1,200", "3.142", "12,431", "0.5", "–"):
        assert text in out


def test_square_brackets_are_text_not_markup(capsys):
    terminal.table(("piece",), [("[bold]",), ("[/red]",)])
    assert "[bold]" in capsys.readouterr().out


def test_json_is_one_strict_line_whatever_a_result_holds(capsys):
    class Row(NamedTuple):
        word: str

    @dataclasses.dataclass
    class Result:
        folder: Path
        loss: float
        rows: list

    terminal.say_json(Result(Path("runs/春"), math.nan, [Row("天"), (1, True, None), {"a": math.inf}]))
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "春" in out
    rows = [{"word": "天"}, [1, True, None], {"a": None}]
    assert json.loads(out) == {"folder": "runs/春", "loss": None, "rows": rows}


def on_a_terminal(code: str, columns: int = 120) -> str:
    """What a program shows on a pseudo-terminal."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns)},
    )
    os.close(child)
    shown = b""
    try:
        while block := os.read(parent, 4096):
            shown += block
    except OSError:  # the other end is closed
        pass
    assert process.wait(timeout=30) == 0, shown.decode()
    os.close(parent)
    return shown.decode()


def test_on_a_terminal_a_bar_is_drawn_and_lines_stand_above_it():
    shown = on_a_terminal("""
import time
from pangu_lab import terminal
with terminal.progress_bar("prepare [x]") as progress:
    for number in range(21):
        progress(number, 20, f"{number} [tokens]/s")
        if number == 10:
            terminal.say("春天 [red]half way")
        time.sleep(0.02)
terminal.say_json({"done": "好"})
""")
    assert "20/20" in shown and "[tokens]/s" in shown and "prepare [x]" in shown
    assert "春天 [red]half way\r\n" in shown
    assert json.loads(shown[shown.rindex('{"done"') :]) == {"done": "好"}


def test_on_a_narrow_terminal_how_far_it_is_and_the_news_stay():
    shown = on_a_terminal(
        """
import time
from pangu_lab import terminal
with terminal.progress_bar("train") as progress:
    for number in range(21):
        progress(number, 20, "loss 5.250 · 12,345 tokens/s · epoch 0.50 · 1.5 tokens/parameter")
        time.sleep(0.02)
""",
        columns=80,
    )
    assert "train 20/20 left 0:00:00 loss 5.250 · 12,345 tokens/s · epoch 0.5" in re.sub(
        r"\x1b\[[0-9;?]*[A-Za-z]", "", shown
    )


def test_no_more_time_is_promised_than_the_budget_has(capsys, monkeypatch):
    from pangu_lab import terminal

    clock = iter((0.0, 0.0, 1.0, 60.0))  # made, budget told, first news, the line
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    bar = terminal._PlainBar("train")
    bar.until(180.0)
    bar(1, 1000, "")
    bar(10, 1000, "")
    assert capsys.readouterr().err == "train: 10 of 1,000 (1%), 2 min 0 s left\n"
