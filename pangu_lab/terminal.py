"""Command-line output: lines, tables, and progress bars with the time left.

Results go to standard output, progress and errors to standard error, so that ``pangu-lab … > file`` keeps only
results. On a terminal a bar is drawn with rich; anywhere else (a log, CI) progress is a plain line every ten
seconds. The bar has no thread of its own: it is redrawn in the progress callback, so that a library function is
free to fork workers while the bar is on the screen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

PLAIN_SECONDS = 10.0  # between two progress lines where there is no terminal
REDRAW_SECONDS = 0.1
WIDE = 120  # characters; where a terminal has fewer, the bar leaves its room to the words
_active_bar: _RichBar | None = None


def say(text: str = "") -> None:
    """One line of results on standard output; above the bar when one is on the screen."""
    if _active_bar is not None and sys.stdout.isatty():
        _active_bar.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
    else:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def write(text: str) -> None:
    """Text on standard output as it comes, without a newline."""
    sys.stdout.write(text)
    sys.stdout.flush()


def complain(text: str) -> None:
    """One line on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def say_json(values: Any) -> None:
    """One line of JSON on standard output; numbers that JSON cannot hold (NaN, infinity) become null."""
    say(json.dumps(_plain(values), ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    """Dataclasses and named tuples as objects, paths as text."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """Print a table; numbers are right-aligned. Without a terminal, nothing is truncated."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    result = Table(title=title, title_justify="left", header_style="bold")
    for number, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[number], (int, float, type(None))) for row in rows)
        result.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        result.add_row(*(Text(_cell(value)) for value in row))
    Console(width=None if sys.stdout.isatty() else 200).print(result)


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return "–" if value is None else value
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def one_line(text: str) -> str:
    """A model's text for a terminal: line ends as ↵, and nothing that a terminal obeys."""
    return "".join(letter if letter.isprintable() else "↵" if letter == "\n" else "�" for letter in text)


def duration(seconds: float) -> str:
    """``75`` → ``1 min 15 s``."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int | None, str], None]]:
    """A progress bar for the duration of the block; yields a ``Progress`` callback for a library function."""
    global _active_bar
    if not sys.stderr.isatty():
        bar = _PlainBar(title)
        yield bar
        bar.finish()
        return
    rich_bar = _RichBar(title)
    with rich_bar.progress:
        _active_bar = rich_bar
        try:
            yield rich_bar
            rich_bar.progress.refresh()
        finally:
            _active_bar = None


def _new_work(last: Sequence[Any], done: int, total: int | None) -> bool:
    """Whether to restart the time estimate: ``done`` went back, or the total was unknown until now."""
    return done < last[0] or (last[1] is None and total is not None)


class _RichBar:
    """A bar drawn by rich."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column

        self.deadline = math.inf
        self.console = Console(stderr=True)
        wide = self.console.width >= WIDE
        self.progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(min_width=len(title))),
            *([BarColumn(bar_width=24)] if wide else []),
            MofNCompleteColumn(),
            *([TimeElapsedColumn()] if wide else []),
            TextColumn("left"),
            self._remaining_column(),
            TextColumn(
                "{task.fields[news]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
            ),
            expand=True,
            console=self.console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=sys.stdout.isatty(),
        )
        self.task = self.progress.add_task(title, total=None, news="")
        self.done, self.total = 0, None
        self.drawn = 0.0

    def _remaining_column(self) -> Any:
        """rich's time left, and no more than the budget has."""
        from rich.progress import TimeRemainingColumn
        from rich.text import Text

        bar = self

        class Remaining(TimeRemainingColumn):
            max_refresh = 0.0

            def render(self, task: Any) -> Text:
                left = bar.deadline - time.monotonic()
                if math.isinf(left) or task.finished or task.time_remaining is not None and task.time_remaining < left:
                    return super().render(task)
                hours, seconds = divmod(max(0, math.ceil(left)), 3600)
                return Text(f"{hours}:{seconds // 60:02d}:{seconds % 60:02d}", style="progress.remaining")

        return Remaining()

    def until(self, seconds: float) -> None:
        """The work ends in so many seconds at the latest."""
        self.deadline = time.monotonic() + seconds

    def __call__(self, done: int, total: int | None, text: str = "") -> None:
        if _new_work((self.done, self.total), done, total):
            self.progress.reset(self.task, total=total, completed=done)  # earlier work must not count in the speed
        self.done, self.total = done, total
        self.progress.update(self.task, completed=done, total=total, news=text)
        now = time.monotonic()
        if now - self.drawn >= REDRAW_SECONDS or done == total:
            self.drawn = now
            self.progress.refresh()


class _PlainBar:
    """An occasional line: ``prepare: 40 of 400 (10 %), 2 min 3 s left, 12345 tokens/s``."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.start: tuple[float, int] | None = None
        self.last: tuple[int, int | None, str] = (0, None, "")
        self.written: tuple[int, int | None, str] | None = None
        self.next_line = time.monotonic() + PLAIN_SECONDS
        self.deadline = math.inf

    def until(self, seconds: float) -> None:
        """The work ends in so many seconds at the latest."""
        self.deadline = time.monotonic() + seconds

    def __call__(self, done: int, total: int | None, text: str = "") -> None:
        now = time.monotonic()
        if self.start is None or _new_work(self.last, done, total):
            self.start = (now, done)
        self.last = (done, total, text)
        if now >= self.next_line:
            self.next_line = now + PLAIN_SECONDS
            self._write(now)

    def finish(self) -> None:
        """The last state, unless it has been printed."""
        if self.start is not None and self.written != self.last:
            self._write(time.monotonic())

    def _write(self, now: float) -> None:
        done, total, text = self.written = self.last
        parts = [f"{done:,}" if total is None else f"{done:,} of {total:,} ({done / max(total, 1):.0%})"]
        started, first = self.start or (now, 0)
        if total is not None and done > first and done < total:
            left = min((now - started) / (done - first) * (total - done), self.deadline - now)
            parts.append(f"{duration(left)} left")
        complain(f"{self.title}: " + ", ".join(parts + [text] if text else parts))
