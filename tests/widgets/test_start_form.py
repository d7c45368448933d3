"""The form for one's own text: what it would type, advice from a real process, a real start with its run."""

from __future__ import annotations

import pytest

from pangu_lab.data import sample_files
from pangu_lab.errors import InputError
from widgets import StartForm, launching


@pytest.fixture
def form_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = []

    def make(*arguments, **values):
        made.append(StartForm(*arguments, **values))
        return made[-1]

    yield make
    for form in made:
        form.monitor.close()


@pytest.fixture
def novel(tmp_path):
    path = tmp_path / "我的 书.txt"
    path.write_text(sample_files("train")[0].read_text(encoding="utf-8")[:3000], encoding="utf-8")
    return path


def test_the_command_follows_what_is_typed_and_nothing_starts_without_a_text(form_of):
    form = form_of()
    assert form.controls.command == ""
    for press in (form.start, form.advise):
        with pytest.raises(InputError, match="name a text"):
            press()
    form.controls.text = "books/my novel.txt"
    form.controls.minutes = 5.0
    assert form.controls.command == "pangu-lab start 'books/my novel.txt' --minutes 5"
    assert str(form.run) == "runs/my novel" and form.monitor.folders == [form.run.absolute()]
    form.controls.text = "-odd"
    assert form.words("advise")[2] == "./-odd"
    assert "pangu-lab start" in repr(form)


def test_what_is_refused_is_shown_in_the_command_s_words(form_of):
    form, said = form_of("nothing.txt"), []
    form.controls.send = said.append
    form.advise().join(60)
    assert [message["kind"] for message in said] == ["refused"] and "nothing.txt: no such file" in said[0]["text"]
    assert not form.controls.busy and form.controls.said == ""


def test_advice_and_a_start_with_its_run(form_of, novel):
    form = form_of(novel, minutes=0.3)
    asking = form.advise()
    assert form.controls.busy
    with pytest.raises(InputError, match="wait for the answer"):
        form.advise()
    asking.join(120)
    assert "bits per character" in form.controls.said and "next: pangu-lab start" in form.controls.said
    started = form.start()
    assert launching.wait_for(form.run) in ("finished", "stopped")  # of so small a text it may gain no more
    form.monitor.refresh()
    assert form.monitor.heads[0]["ended"] and form.monitor.heads[0]["step"] > 0
    assert (form.run / "start" / "settings.yaml").is_file()
    assert launching.outcome(started).startswith("sample: ") and "pangu-lab generate" in launching.outcome(started)
