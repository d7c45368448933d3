"""The best checkpoint, patience, and the warning that a run learns by heart."""

from __future__ import annotations

import shutil

import pytest

from pangu_lab.checkpoint import list_checkpoints, resolve_checkpoint
from pangu_lab.checkpoint.best import Best, read_best
from pangu_lab.runs import EventLog, read_curves, read_events
from pangu_lab.train import train
from pangu_lab.train.evaluation import HeldOutLoss
from pangu_lab.train.watch import Watch


class Folder:
    """A run folder as a watch needs it."""

    def __init__(self, folder, *saved):
        self.folder, self.checkpoints, self.said = folder, folder / "checkpoints", []
        for step in saved:
            (self.checkpoints / f"step-{step:08d}").mkdir(parents=True)

    def warn(self, text):
        self.said.append(text)


def evaluate(watch, step, loss, training, records=8):
    """An evaluation after steps of this training loss; saves it when it is the best."""
    watch.step(training)
    held_out = HeldOutLoss(loss, 100, records, 90)
    if watch.is_best(step, held_out):
        watch.keep(step, held_out)
        return True
    return False


def test_the_lowest_held_out_loss_is_the_best_and_patience_counts_what_follows(tmp_path):
    watch = Watch(Folder(tmp_path), 10, patience=2)
    assert [evaluate(watch, *one) for one in ((10, 5.0, 5.0), (20, 4.0, 4.0), (30, 4.1, 3.0))] == [True, True, False]
    assert read_best(tmp_path) == Best(20, 4.0, 8) and not watch.hopeless
    evaluate(watch, 40, float("nan"), 3.0)
    assert watch.hopeless and read_best(tmp_path).step == 20


def test_learning_by_heart_is_said_once_with_both_losses(tmp_path):
    folder = Folder(tmp_path)
    watch = Watch(folder, 10)
    for step, loss, training in ((10, 3.5, 3.6), (20, 3.21, 3.3), (30, 3.3, 3.1), (40, 3.40, 2.9), (50, 3.6, 2.5)):
        evaluate(watch, step, loss, training)
    [said] = folder.said
    assert "from step 20 on it learns by heart: held-out loss 3.21 at step 20, 3.40 now" in said
    assert said.endswith("@best")


def test_a_held_out_loss_that_rises_with_the_training_loss_is_not_learning_by_heart(tmp_path):
    folder = Folder(tmp_path)
    watch = Watch(folder, 10)
    for step, loss in ((10, 3.0), (20, 3.2), (30, 3.3), (40, 3.4)):
        evaluate(watch, step, loss, loss)
    assert folder.said == []


def _events(folder, *evals):
    log = EventLog(folder)
    for step, loss in evals:
        log.write("eval", step=step, loss=loss, perplexity=1.0, records=8, of_records=90)
    log.close()


def test_a_best_step_that_a_kill_left_without_its_name_gets_it(tmp_path):
    _events(tmp_path, (0, 1.0), (10, 5.0), (20, 4.0))  # the loss before training does not count
    Best(10, 5.0, 8).write(tmp_path)
    watch = Watch(Folder(tmp_path, 10, 20), 10)
    watch.resume(20)
    assert watch.best == read_best(tmp_path) == Best(20, 4.0, 8) and watch.since == 0


def test_a_best_step_that_is_taken_back_or_gone_is_best_no_longer(tmp_path):
    _events(tmp_path, (10, 5.0), (20, 4.0), (30, 3.0))
    Best(30, 3.0, 8).write(tmp_path)
    watch = Watch(Folder(tmp_path, 10), 10)
    watch.resume(20)
    assert watch.best == Best(10, 5.0, 8) and watch.since == 1
    watch.resume(0)
    assert watch.best is None and not (tmp_path / "best.json").exists()


def test_other_held_out_records_begin_the_search_anew(tmp_path):
    watch = Watch(Folder(tmp_path), 10)
    assert evaluate(watch, 10, 4.0, 4.0) and evaluate(watch, 20, 4.5, 4.0, records=90)
    assert watch.best == Best(20, 4.5, 90)


@pytest.fixture(scope="module")
def by_heart(debug_config, tmp_path_factory):
    """A run that learns a few records by heart, with one checkpoint kept; its data lie beside it."""
    folder = tmp_path_factory.mktemp("by_heart")
    config = debug_config.replace(
        **{
            "train.steps": 400,
            "train.eval_every": 20,
            "train.checkpoint_every": 50,
            "train.keep_checkpoints": 1,
            "train.patience": 3,
            "train.start_lr": 0.02,
            "data.path": debug_config.data.eval_path,
            "data.batch_size": 4,
            "data.eval_path": debug_config.data.path,
        }
    )
    return folder / "run", train(config, folder / "run"), config


def test_a_run_without_gain_ends_and_keeps_its_best_beside_the_newest(by_heart):
    run, result, config = by_heart
    evals = {event["step"]: event["loss"] for event in read_curves(run).evals if event["step"]}
    best = min(evals, key=evals.get)
    assert result.reason == "no gain" and result.step < 400
    assert result.best.step == best and result.step == best + 60
    assert [int(path.name[5:]) for path in list_checkpoints(run / "checkpoints")] == [best, result.step]
    assert resolve_checkpoint(f"{run}@best").step == best


def test_resumed_without_its_best_name_it_finds_it_again(by_heart, tmp_path):
    run, result, config = by_heart
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "best.json").unlink()
    train(config.replace(**{"train.max_minutes": 0.0, "data.eval_path": ""}), tmp_path / "run")
    assert read_best(tmp_path / "run") == result.best


def test_incremental_training_begins_from_the_best(by_heart, tmp_path):
    run, result, config = by_heart
    train(config.replace(**{"train.init_from": f"{run}@best", "train.steps": 1}), tmp_path / "on")
    starts = [event for event in read_events(tmp_path / "on") if event["kind"] == "start"]
    assert starts[0]["init_from"] == f"{run}@best"
    before = next(event for event in read_curves(tmp_path / "on").evals if event["step"] == 0)
    assert before["loss"] == pytest.approx(result.best.loss, rel=1e-6)
