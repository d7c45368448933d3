"""Recomputation by pieces: layers that share graphs compute what graphs of their own would, to the last bit."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from pangu_lab.model.pangu import PanguStage, Parts, Weights
from pangu_lab.model.parameters import initial_weights
from pangu_lab.presets import preset
from pangu_lab.train.recompute import Piece, Pieces, SharedPiece

DEEP = preset("debug").replace(
    **{
        "model.num_layers": 6,
        "model.hidden_size": 16,
        "model.num_positions": 16,
        "data.seq_length": 16,
        "model.dropout_rate": 0.1,
        "parallel.recompute": True,
    }
)


def test_layers_in_shared_graphs_give_the_rows_and_gradients_of_their_own():
    ms.set_context(mode=ms.GRAPH_MODE)
    weights = Weights(initial_weights(DEEP.model, 1))
    pieces = Pieces(Parts(DEEP.model, weights, seed=DEEP.train.seed, seq_length=16), {}).pieces
    assert [type(piece) for piece in pieces] == [Piece, SharedPiece, SharedPiece, SharedPiece, Piece]
    assert pieces[1].graphs is pieces[2].graphs is pieces[3].graphs
    rng = np.random.default_rng(0)
    x, dy = (Tensor(rng.standard_normal((32, 16)).astype(np.float32)) for _ in range(2))
    positions, samples = Tensor(np.tile(np.arange(16, dtype=np.int32), (2, 1))), Tensor([3, 4], ms.int32)
    own = Piece(PanguStage(Parts(DEEP.model, weights, seed=DEEP.train.seed, seq_length=16), range(3, 4)))
    other = pieces[1].forward(x, positions, samples).asnumpy()  # what was there before must leave nothing behind
    want = own.forward(x, positions, samples).asnumpy()
    assert (pieces[3].forward(x, positions, samples).asnumpy() == want).all() and (other != want).any()
    pieces[2].forward(x, positions, samples)
    (dx, gradients), (want_dx, want_gradients) = (
        piece.backward(x, positions, samples, dy) for piece in (pieces[3], own)
    )
    assert (dx.asnumpy() == want_dx.asnumpy()).all() and pieces[3].names == own.names
    assert all((one.asnumpy() == two.asnumpy()).all() for one, two in zip(gradients, want_gradients, strict=True))


@pytest.mark.slow
def test_a_run_with_recomputation_has_the_losses_of_one_without(debug_config, tmp_path):
    from pangu_lab.runs import read_curves
    from pangu_lab.train import train

    told = []
    for recompute in (False, True):
        config = debug_config.replace(
            **{"model.num_layers": 6, "model.dropout_rate": 0.1, "parallel.recompute": recompute}
        )
        train(config, tmp_path / str(recompute))
        curves = read_curves(tmp_path / str(recompute))
        told.append([event["loss"] for event in (*curves.steps, *curves.evals)])
    assert told[0] == pytest.approx(told[1], rel=1e-6)
