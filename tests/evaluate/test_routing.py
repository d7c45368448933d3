"""Pictures of routing: drawn from events and from a checkpoint, refused for a dense model."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_lab.checkpoint import save_checkpoint
from pangu_lab.errors import InputError
from pangu_lab.evaluate.routing import plot_routed_text, route_text
from pangu_lab.model.parameters import initial_weights
from pangu_lab.presets import preset
from pangu_lab.runs.events import EventLog
from pangu_lab.runs.routing import plot_load


def test_the_load_is_drawn_from_the_events_alone(tmp_path):
    log = EventLog(tmp_path)
    for step in (1, 2, 3):
        log.write("step", step=step, loss=2.0, expert_load=[[0.7, 0.3], [0.5, 0.5]], drop_rate=0.125)
    assert plot_load([tmp_path], tmp_path / "load.png").stat().st_size > 5000


def test_every_token_of_a_text_is_shown_with_its_expert(debug_data, tmp_path):
    import shutil

    config = preset("debug_moe")
    save_checkpoint(tmp_path / "weights", initial_weights(config.model, 1), {"step": 0}, config)
    shutil.copytree(debug_data / "tokenizer", tmp_path / "weights" / "tokenizer")
    routed = route_text(tmp_path / "weights", "春天来了，花开了。")
    assert routed.layers == (1,) and routed.gates.shape == (1, len(routed.pieces), 4)
    assert np.allclose(routed.gates.sum(-1), 1.0, atol=1e-5) and ((routed.gates > 0).sum(-1) == 2).all()
    assert plot_routed_text(routed, tmp_path / "routing.png").stat().st_size > 5000


def test_a_dense_model_is_refused(debug_run, tmp_path):
    with pytest.raises(InputError, match="no experts"):
        route_text(debug_run, "春天")
    with pytest.raises(InputError, match="experts to draw"):
        plot_load([debug_run], tmp_path / "load.png")
