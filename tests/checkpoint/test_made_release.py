"""A release made of a run: the published tree and names, shards and parts, read back as the downloaded one is."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from pangu_lab.checkpoint import convert_checkpoint, load_weights, write_release
from pangu_lab.errors import InputError
from tests.checkpoint.test_convert import SETTINGS, same


@pytest.mark.parametrize("parts", [0, 4])
def test_it_has_the_published_names_and_gives_the_run_s_weights(debug_run, tmp_path, parts):
    top = write_release(debug_run, tmp_path / "ckpts", parts=parts)
    assert sorted(path.name for path in top.iterdir()) == ["checkpoint_file", "strategy_load_ckpt", "tokenizer"]
    names = {path.name for path in (top / "checkpoint_file").iterdir()}
    tables = {"word_embedding", "position_embedding", "top_query_embedding"}
    assert names == (
        {f"13B_part{n}" for n in range(4)} | {f"13B_{name}" for name in tables}
        if parts
        else {f"filerted_{rank}.ckpt" for rank in range(8)} | {f"{name}.npy" for name in tables}
    )
    assert [path.name for path in (top / "strategy_load_ckpt").iterdir()] == ["pangu_alpha_13B_ckpt_strategy.ckpt"]
    convert_checkpoint(top, tmp_path / "back", overrides=SETTINGS)
    same(load_weights(tmp_path / "back")[0], load_weights(debug_run)[0])


def test_a_shard_holds_its_slices_among_what_training_left(debug_run, tmp_path):
    top = write_release(debug_run, tmp_path / "ckpts", tensor=2, optimizer=4)
    whole = load_weights(debug_run)[0]
    shard = {
        name: value.asnumpy()
        for name, value in ms.load_checkpoint(str(top / "checkpoint_file" / "filerted_5.ckpt")).items()
    }
    name = next(name for name in whole if name.endswith("output.mapping.weight"))
    rows, columns = (size // count for size, count in zip(whole[name].shape, (4, 2)))
    assert np.array_equal(shard[name], whole[name][2 * rows : 3 * rows, columns:])  # shard 5 of a 4 × 2 device matrix
    assert {"global_step", f"adam_m.{name}", f"adam_v.{name}", "scale_sense"} < shard.keys()


def test_what_cannot_be_cut_is_refused_and_nothing_is_left(debug_run, tmp_path):
    with pytest.raises(InputError, match="cannot be cut for 7 × 4 ranks"):
        write_release(debug_run, tmp_path / "ckpts", tensor=7)
    assert not any(path.name.startswith("ckpts") for path in tmp_path.iterdir())
