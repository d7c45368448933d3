"""Training as a whole: it learns, resumes exactly, stops cleanly, and refuses what does not go together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pangu_lab.checkpoint import Checkpoint, list_checkpoints, load_weights
from pangu_lab.errors import InputError
from pangu_lab.presets import load_yaml
from pangu_lab.runs import list_runs, read_curves, read_events, request_stop
from pangu_lab.runs.status import read_status
from pangu_lab.train import train
from pangu_lab.train.loop import Trainer, TrainingFailed


def losses(run):
    return {event["step"]: event["loss"] for event in read_curves(run).steps}


def start(config, folder, *arguments):
    """Train in a process of its own, as the command line does; returns when it has made some steps."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    script = (
        "import sys; from pangu_lab.presets import load_yaml; from pangu_lab.train import train; "
        "r = train(load_yaml(sys.argv[1]), sys.argv[2]); print(r.reason)"
    )
    # an environment of its own: MindSpore's data library puts OMP_NUM_THREADS=1 into the one that C hands on
    return subprocess.Popen(
        [sys.executable, "-c", script, str(path), str(folder)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def wait_for_step(folder, step, process):
    for _ in range(600):
        if any(event["kind"] == "step" and event["step"] >= step for event in read_events(folder)):
            return
        assert process.poll() is None, "training ended early"
        time.sleep(0.1)
    raise AssertionError("no step in a minute")


def test_a_run_begun_with_relative_paths_resumes_from_another_folder(debug_config, tmp_path, monkeypatch):
    data, run = Path(debug_config.data.path), tmp_path / "run"
    monkeypatch.chdir(data.parent)
    train(debug_config.replace(**{"data.path": data.name, "data.eval_path": "", "train.steps": 1}), run)
    monkeypatch.chdir(tmp_path)
    kept = load_yaml(run / "config.yaml")
    assert kept.data.path == str(data)
    assert train(kept.replace(**{"train.steps": 2}), run).step == 2


def test_the_loss_falls_and_the_run_folder_tells_all(debug_run):
    curve = losses(debug_run)
    assert list(curve) == list(range(1, 21)) and curve[20] < curve[1] - 1
    evals = [event["perplexity"] for event in read_curves(debug_run).evals]
    assert len(evals) == 3 and evals[-1] < evals[0] / 3
    assert read_status(debug_run)["state"] == "finished"
    assert (debug_run / "tokenizer").is_dir()
    kinds = [event["kind"] for event in read_events(debug_run)]
    assert kinds[0] == "start" and kinds[-1] == "end" and "compile" in kinds and "checkpoint" in kinds
    assert all(event["v"] == 1 for event in read_events(debug_run))
    assert list_runs(debug_run.parent)[0].name == "debug"


def test_killed_at_once_and_resumed_gives_bit_equal_losses(debug_config, debug_run, tmp_path):
    config = debug_config.replace(**{"train.steps": 100000, "train.decay_steps": 20})
    process = start(config, tmp_path / "run")
    wait_for_step(tmp_path / "run", 12, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert read_status(tmp_path / "run")["state"] == "died"
    killed_at = max(losses(tmp_path / "run"))
    newest = Checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1]).step
    with open(tmp_path / "run" / "events.jsonl", "a") as handle:
        handle.write('{"v": 1, "kind": "st')  # a line that the kill cut short
    end = newest + 10
    result = train(config.replace(**{"train.steps": end}), tmp_path / "run")
    assert result.reason == "finished" and newest <= killed_at and newest % 10 == 0
    straight = train(config.replace(**{"train.steps": end}), tmp_path / "straight")
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")  # every float equal, to the last bit
    resumed, whole = (Checkpoint(r.checkpoint) for r in (result, straight))
    assert all((resumed.read(name) == whole.read(name)).all() for name in whole.tensors)


def test_resuming_with_dropout_and_accumulation_is_exact_too(debug_config, tmp_path):
    config = debug_config.replace(
        **{
            "model.dropout_rate": 0.2,
            "train.accumulation": 2,
            "train.checkpoint_every": 5,
            "train.steps": 10,
            "train.decay_steps": 10,
            "model.num_layers": 2,
        }
    )
    train(config, tmp_path / "straight")
    train(config.replace(**{"train.steps": 5}), tmp_path / "parts")
    train(config, tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "straight")


def test_accumulation_gives_the_loss_curve_of_the_whole_batch(debug_config, debug_run, tmp_path):
    train(debug_config.replace(**{"train.accumulation": 4}), tmp_path / "run")
    whole, parts = losses(debug_run), losses(tmp_path / "run")
    assert np.allclose(list(whole.values()), list(parts.values()), rtol=1e-5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_exits_0(debug_config, tmp_path, number):
    process = start(debug_config.replace(**{"train.steps": 100000}), tmp_path / "run")
    wait_for_step(tmp_path / "run", 3, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "signal" in output
    last = max(losses(tmp_path / "run"))
    assert Checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1]).step == last
    assert read_status(tmp_path / "run")["state"] == "stopped"


def test_the_stop_file_and_the_time_budget_end_a_run_with_a_checkpoint(debug_config, tmp_path):
    config = debug_config.replace(**{"train.steps": 100000})
    run = tmp_path / "run"

    def ask_at_three(done, total, text):
        if done == 3:
            request_stop(run)

    result = train(config, run, progress=ask_at_three)
    assert result.reason == "stop file" and result.step == 3 and Checkpoint(result.checkpoint).step == 3
    result = train(config.replace(**{"train.max_minutes": 0.0}), run)
    assert result.reason == "time budget" and result.step == 4


def test_a_damaged_checkpoint_is_skipped_by_name_and_the_one_before_is_used(debug_config, tmp_path):
    config = debug_config.replace(**{"train.checkpoint_every": 5, "train.steps": 10, "train.decay_steps": 12})
    result = train(config, tmp_path / "run")
    shard = result.checkpoint / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0x10
    shard.write_bytes(data)
    train(config.replace(**{"train.steps": 12}), tmp_path / "run")
    events = list(read_events(tmp_path / "run"))
    assert any(e["kind"] == "warning" and "step-00000010" in e["text"] for e in events)
    assert [e["resumed_from"] for e in events if e["kind"] == "start"] == [0, 5]


def test_another_schedule_at_a_resume_is_told(debug_config, tmp_path):
    config = debug_config.replace(**{"train.steps": 4, "train.warmup_steps": 1})
    train(config, tmp_path / "run")
    train(config.replace(**{"train.steps": 6, "train.decay_steps": 4}), tmp_path / "run")
    warnings = [event["text"] for event in read_events(tmp_path / "run") if event["kind"] == "warning"]
    assert not [text for text in warnings if "learning rate" in text]
    train(config.replace(**{"train.steps": 60}), tmp_path / "run")
    (text,) = [event["text"] for event in read_events(tmp_path / "run") if event["kind"] == "warning"]
    assert "at step 6" in text and "ended at step 4 and ends at step 60 now; train.decay_steps=4 keeps it" in text


class Inject:
    """Makes the squared norm infinite at chosen calls, as an fp16 overflow would."""

    def __init__(self, trainer, calls):
        self.trainer, self.real, self.calls, self.count = trainer, trainer.squared_norm, calls, 0

    def __call__(self, *gradients):
        from mindspore import Tensor

        self.count += 1
        value = self.real(*gradients)
        return Tensor(np.float32(np.inf)) if self.count in self.calls else value


@pytest.fixture
def overflow_at(monkeypatch):
    def arm(*calls):
        build = Trainer.build

        def wrapped(self, *args, **kwargs):
            build(self, *args, **kwargs)
            self.squared_norm = Inject(self, set(calls))

        monkeypatch.setattr(Trainer, "build", wrapped)

    return arm


def test_mixed_precision_learns_and_a_real_overflow_lowers_the_scale(debug_config, debug_run, tmp_path):
    config = debug_config.replace(**{"model.compute_dtype": "float16", "train.loss_scale": 2.0**32})
    train(config, tmp_path / "run")
    curves = read_curves(tmp_path / "run")
    assert curves.overflows and curves.overflows[0]["was"] == 2.0**32  # 2^32 overflows fp16, for real
    assert curves.steps[-1]["loss"] == pytest.approx(losses(debug_run)[20], rel=0.05)


def test_an_overflowed_step_changes_neither_weights_nor_schedule(debug_config, tmp_path, overflow_at):
    config = debug_config.replace(**{"model.compute_dtype": "float16", "train.loss_scale": 1024.0, "train.steps": 3})
    overflow_at(2)
    train(config, tmp_path / "run")
    curves = read_curves(tmp_path / "run")
    assert [event["step"] for event in curves.overflows] == [1]
    assert [event["loss_scale"] for event in curves.steps] == [1024.0, 512.0, 512.0]
    assert [event["step"] for event in curves.steps] == [1, 2, 3]
    assert curves.steps[1]["lr"] == pytest.approx(2 * curves.steps[0]["lr"])  # the schedule did not move meanwhile


def test_the_scale_at_its_floor_stops_the_run_and_names_a_setting(debug_config, tmp_path, overflow_at):
    config = debug_config.replace(**{"model.compute_dtype": "float16", "train.loss_scale": 4.0})
    overflow_at(1, 2, 3)
    with pytest.raises(TrainingFailed, match="model.softmax_dtype=float32"):
        train(config, tmp_path / "run")
    assert read_status(tmp_path / "run")["state"] == "failed"


@pytest.mark.parametrize(
    "change,words",
    [
        ({"data.seq_length": 32}, "data.seq_length"),
        ({"model.vocab_size": 256}, r"more than model.vocab_size=256; set model.vocab_size=\d+"),
        ({"data.column": "tokens"}, "tokens"),
        ({"data.path": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"data.path": ""}, "data.path"),
        ({"tokenizer.path": "pangu"}, "another tokenizer"),
        ({"tokenizer.eod": 8}, "tokenizer.eod=9"),
    ],
)
def test_data_that_does_not_fit_is_refused_by_name(debug_config, tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        train(debug_config.replace(**change), tmp_path / "run")


def test_the_run_notes_which_pieces_end_documents_and_fill_records(debug_run):
    import yaml

    noted = yaml.safe_load((debug_run / "config.yaml").read_text(encoding="utf-8"))["tokenizer"]
    assert (noted["eod"], noted["pad"]) == (9, 6)


def test_a_run_goes_on_only_with_the_settings_it_began_with(debug_config, debug_run, tmp_path):
    with pytest.raises(InputError, match="train.start_lr=0.003"):
        train(debug_config.replace(**{"train.start_lr": 0.1}), debug_run)
    with pytest.raises(InputError, match="holds a run already"):
        train(debug_config, debug_run, resume=False)
    with pytest.raises(InputError, match="no run to resume"):
        train(debug_config, tmp_path / "none", resume=True)


def test_a_second_process_may_not_train_in_the_same_folder(debug_config, tmp_path):
    process = start(debug_config.replace(**{"train.steps": 100000}), tmp_path / "run")
    wait_for_step(tmp_path / "run", 1, process)
    with pytest.raises(InputError, match=f"process {process.pid} is training here"):
        train(debug_config, tmp_path / "run")
    request_stop(tmp_path / "run")
    assert process.wait(timeout=60) == 0


def test_weights_load_from_a_run_and_from_a_checkpoint(debug_run):
    from_run, config = load_weights(debug_run)
    from_checkpoint, _ = load_weights(list_checkpoints(debug_run / "checkpoints")[-1])
    assert config.preset == "debug" and all((from_run[n] == from_checkpoint[n]).all() for n in from_run)
    assert json.loads((list_checkpoints(debug_run / "checkpoints")[-1] / "state.json").read_text())["step"] == 20
    assert os.path.exists(debug_run / "config.yaml")


def test_an_evaluation_tells_bits_per_character_and_on_how_many_records_it_rests(debug_config, debug_run):
    from pangu_lab.data import open_dataset

    heldout, event = open_dataset(debug_config.data.eval_path), read_curves(debug_run).evals[-1]
    tokens_per_character = heldout.metadata["tokens"] / heldout.metadata["characters"]
    assert event["bits_per_character"] == pytest.approx(event["loss"] / np.log(2) * tokens_per_character)
    assert (event["records"], event["of_records"]) == (8, len(heldout))  # two batches of four


def test_a_data_set_that_does_not_know_its_characters_gives_no_bits_per_character(debug_config, tmp_path):
    import shutil

    shutil.copytree(debug_config.data.eval_path, tmp_path / "old")
    path = tmp_path / "old" / "dataset.json"
    described = json.loads(path.read_text())
    del described["characters"]
    path.write_text(json.dumps(described))
    result = train(
        debug_config.replace(**{"data.eval_path": str(tmp_path / "old"), "train.steps": 1}), tmp_path / "run"
    )
    assert result.eval_loss > 0 and result.eval_bits_per_character is None
    assert "bits_per_character" not in read_curves(tmp_path / "run").evals[-1]


def test_a_run_that_evaluates_on_all_records_ends_with_the_perplexity_that_evaluate_gives(debug_config, tmp_path):
    from pangu_lab.evaluate import perplexity

    result = train(debug_config.replace(**{"train.eval_batches": 10_000, "train.steps": 2}), tmp_path / "run")
    again = perplexity(tmp_path / "run", debug_config.data.eval_path)
    assert result.eval_records == result.eval_of_records == again.records == again.of_records
    assert result.eval_perplexity == pytest.approx(again.perplexity, rel=1e-5)
    assert result.eval_bits_per_character == pytest.approx(again.bits_per_character, rel=1e-6)
