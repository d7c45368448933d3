"""The monitor without a browser: what it sends, what it answers, what is left where no widget can be drawn."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from pangu_lab.errors import InputError
from tests.runs.test_ranks import write as write_beat
from widgets.monitor import RunMonitor
from widgets.run_data import RunFollower


@pytest.fixture
def monitor_of():
    """A monitor whose thread does not run: the test ticks it; with the messages it sent."""
    made = []

    def make(*folders, **values):
        monitor = RunMonitor(*folders, **values)
        monitor._closed.set()
        monitor.sent = []
        monitor.send = lambda content, buffers=None: monitor.sent.append((content, buffers))
        made.append(monitor)
        return monitor

    yield make
    for monitor in made:
        monitor.close()


def test_a_new_step_sends_only_the_rows_that_changed(written_run, monitor_of):
    run = written_run()
    for step in range(1, 101):
        run.step(step, 100.0 - step)
    run.status("training", 100)
    monitor = monitor_of(run.folder)
    run.step(101, 0.5)
    monitor.tick()
    ((message, buffers),) = monitor.sent
    assert message["kind"] == "tail" and message["first"] == 99
    losses = np.frombuffer(buffers[message["names"].index("loss")], "<f4")
    assert losses.tolist() == [0.0, 0.5] and sum(map(len, buffers)) < 200
    assert monitor.heads[0]["state"] == "training" and monitor.heads[0]["step"] == 101


def test_steps_taken_back_make_the_whole_picture_new(written_run, monitor_of):
    run = written_run()
    for step in range(1, 6):
        run.step(step)
    run.status("training", 5)
    monitor = monitor_of(run.folder)
    run.write("start", step=2, resumed_from=2, steps=20)
    monitor.tick()
    assert monitor.sent == [] and np.frombuffer(monitor.data[0]["columns"]["step"]).tolist() == [1, 2]


def test_a_run_of_100000_steps_is_sent_decimated_and_a_new_step_as_its_last_row_alone(written_run, monitor_of):
    run = written_run()
    run.status("training", 0)
    monitor = monitor_of(run.folder)
    steps = monitor.runs[0].steps
    for number in range(1, 100_001):
        steps.add({"step": number, "time": run.begun + number, "tokens": number, "loss": 3.0, "lr": 1e-3})
    monitor.refresh()
    assert len(np.frombuffer(monitor.data[0]["columns"]["step"])) <= 512
    run.write("step", step=100_001, loss=3.0)
    monitor.tick()
    content, columns = monitor.sent[-1]
    assert content["kind"] == "tail" and len(np.frombuffer(columns[content["names"].index("step")])) <= 2


def test_stop_writes_the_wish_into_the_run_folder(written_run, monitor_of, tmp_path):
    run = written_run()
    run.status("training", 1)
    monitor = monitor_of(run.folder)
    monitor._received(monitor, {"do": "stop"}, [])
    assert (run.folder / "stop").exists()
    nothing = monitor_of(tmp_path / "nothing")
    nothing._received(nothing, {"do": "stop"}, [])
    assert nothing.sent[0][0]["kind"] == "refused" and "no run here" in nothing.sent[0][0]["text"]


def test_other_runs_are_compared_and_only_those_beside_the_first(written_run, monitor_of):
    first, second = written_run("first"), written_run("second")
    for run in (first, second):
        run.step(1)
        run.status("finished", 1)
    monitor = monitor_of(first.folder)
    assert monitor.others == ["first", "second"]
    monitor._received(monitor, {"do": "compare", "names": ["second", "../../elsewhere"]}, [])
    assert [head["name"] for head in monitor.heads] == ["first", "second"]
    assert monitor.csv().count("\nsecond,") == 1 and monitor.csv().count("run,step") == 1


def test_logs_are_sent_while_they_are_looked_at(written_run, monitor_of):
    run = written_run()
    run.status("training", 1)
    log = run.folder / "logs" / "rank_0.log"
    log.write_text("one\n")
    monitor = monitor_of(run.folder)
    monitor._received(monitor, {"do": "log", "name": "rank_0"}, [])
    assert monitor.log_view == {"name": "rank_0", "lines": ["one"]}
    log.write_text("one\ntwo\n")
    monitor.tick()
    assert monitor.log_view["lines"] == ["one", "two"]


def test_without_widgets_there_is_a_picture_and_text_with_nothing_that_runs(written_run, monitor_of):
    run = written_run("<script>alert(1)<")
    for step in range(1, 6):
        run.step(step, 6.0 - step)
    run.write("eval", step=5, loss=2.0, perplexity=7.4)
    run.status("stopped", 5, reason="stop file")
    data, _ = monitor_of(run.folder)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert (
        "stopped, step 5 of 20, 0.0179 tokens a parameter, loss 1, held-out perplexity 7.4, stop file"
        in data["text/plain"]
    )
    assert "<svg" in data["text/html"] and "<polyline" in data["text/html"] and "<script" not in data["text/html"]


def test_the_monitor_says_on_how_many_held_out_records_the_perplexity_rests(written_run, monitor_of):
    run = written_run()
    run.step(5, 2.0)
    run.write("eval", step=5, loss=2.0, perplexity=7.4, bits_per_character=1.5, records=8, of_records=90)
    run.status("training", 5)
    text = monitor_of(run.folder).still_text()
    assert "held-out perplexity 7.4 (8 of 90 held-out records), held-out bits per character 1.5" in text


def test_the_monitor_says_epochs_tokens_a_parameter_and_the_last_warning(written_run, monitor_of):
    run = written_run()
    run.step(5, 2.0, epoch=1.25)
    run.write("warning", step=5, text="from step 2 on it learns <by> heart")
    run.status("training", 5)
    monitor = monitor_of(run.folder)
    assert "1.25 epochs, 0.0179 tokens a parameter" in monitor.still_text()
    assert "! from step 2 on it learns &lt;by&gt; heart" in monitor.still_html()


def test_every_rank_is_a_line_whichever_host_it_is_on(written_run, monitor_of):
    run = written_run()
    run.step(5)
    run.status("training", 5)
    monitor = monitor_of(run.folder)
    assert monitor.ranks == []
    write_beat(run.folder, 0, step=5)
    write_beat(run.folder, 1, step=4, host="node-b", boot="another", pid=(1 << 22) - 1)
    monitor.refresh()
    assert [(one["rank"], one["host"], one["state"], one["step"]) for one in monitor.ranks] == [
        (0, socket.gethostname(), "training", 5),
        (1, "node-b", "training", 4),
    ]
    write_beat(run.folder, 1, "done", step=20, host="node-b", boot="another")
    run.step(20)
    run.status("finished", 20)
    monitor.tick()
    assert [(one["state"], one["step"]) for one in monitor.ranks] == [("training", 5), ("done", 20)]


def test_samples_follow_the_run_and_are_text_and_never_markup(written_run, monitor_of):
    run = written_run()
    run.write("sample", step=0, prompt="春", text="a")
    run.step(5)
    run.status("training", 5)
    monitor = monitor_of(run.folder)
    run.write("sample", step=5, prompt="<b>", text="<script>alert(1)</script>")
    monitor.tick()
    assert [one["step"] for one in monitor.samples] == [0, 5]
    html = monitor.still_html()
    assert "&lt;script&gt;alert(1)" in html and "<script" not in html and "Samples, step 5" in html
    run.write("start", step=2, resumed_from=2, steps=20)
    monitor.tick()
    assert [one["step"] for one in monitor.samples] == [0]


def test_curves_of_different_vocabularies_are_drawn_in_bits_per_character(written_run, monitor_of):
    folders = []
    for name, vocabulary, characters in (("small", "a", 1.0), ("large", "b", 2.0)):
        run = written_run(name)
        run.write("start", step=0, resumed_from=0, steps=20, vocabulary=vocabulary, characters_per_token=characters)
        run.step(1, 4.0)
        run.write("eval", step=1, loss=4.0, perplexity=54.6, bits_per_character=4.0 / np.log(2) / characters)
        run.status("finished", 1)
        folders.append(run.folder)
    monitor = monitor_of(*folders)
    assert monitor.unit == "bits"
    assert [data["scale"] for data in monitor.data] == pytest.approx([1 / np.log(2), 0.5 / np.log(2)])
    assert "bits per character (the vocabularies differ)" in monitor.still_html()
    assert monitor_of(folders[0]).unit == "loss"


def test_a_monitor_shows_a_real_run(debug_run, monitor_of):
    monitor = monitor_of(debug_run)
    follower = RunFollower(debug_run)
    follower.poll()
    assert monitor.heads[0]["state"] == "finished" and monitor.heads[0]["step"] == 20
    assert np.frombuffer(monitor.data[0]["columns"]["step"]).tolist() == list(range(1, 21))
    assert len(monitor.data[0]["evals"]) == 3 and monitor.heads[0]["compile_seconds"] > 0


def test_no_folder_is_refused():
    with pytest.raises(InputError, match="needs a run folder"):
        RunMonitor()
