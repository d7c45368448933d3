"""Adam on the host: equal to the device's, resumed exactly, in memory or in a mapped file, larger than memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from pangu_lab.checkpoint import Checkpoint
from pangu_lab.checkpoint.folder import write_shard
from pangu_lab.config import TrainConfig
from pangu_lab.errors import InputError
from pangu_lab.launch import launch
from pangu_lab.model.parameters import is_matrix
from pangu_lab.runs import read_curves
from pangu_lab.train import train
from pangu_lab.train.offload import PIECE, HostAdamW, StateStore
from pangu_lab.train.step import AdamW

ms.set_context(mode=ms.GRAPH_MODE)
HOST = {"train.offload": "optimizer"}


def losses(run):
    return np.array([event["loss"] for event in read_curves(run).steps])


@pytest.mark.parametrize("in_file", [False, True], ids=["memory", "file"])
def test_the_hosts_adam_equals_the_devices(tmp_path, in_file):
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape).astype(np.float32) for shape in ((PIECE + 7, 3), (5,))]
    config = TrainConfig(offload="optimizer", offload_folder=str(tmp_path / "states") if in_file else None)
    made = lambda kind: [Parameter(Tensor(v), name=f"{kind}{i}") for i, v in enumerate(values)]
    ours, theirs = made("h"), made("d")
    host, device = HostAdamW(ours, [True, False], config, None), AdamW(theirs, [True, False], config)
    for step in range(1, 6):
        gradients = [Tensor((rng.standard_normal(v.shape) * 0.9**step * 64).astype(np.float32)) for v in values]
        for optimizer in (host, device):
            optimizer.update(gradients, 0.5 * step, 1 / 64, 0.01 * step)
    for mine, other in zip(ours, theirs):
        assert np.abs(mine.asnumpy() - other.asnumpy()).max() < 1e-6
    for name, value in device.moments().items():
        assert np.allclose(host.moments()[name.replace(".d", ".h")], value, rtol=1e-5, atol=1e-7)
    if in_file:
        assert list((tmp_path / "states").iterdir()) == []  # the file has no name: nothing is left whatever happens


def test_a_run_with_states_on_the_host_gives_the_curve_of_the_device_and_goes_on_there(
    debug_config, debug_run, tmp_path
):
    config = debug_config.replace(
        **HOST, **{"train.offload_folder": str(tmp_path / "states"), "train.steps": 10, "train.decay_steps": 20}
    )
    train(config, tmp_path / "run")
    train(debug_config.replace(**{"train.decay_steps": 20}), tmp_path / "run")
    assert np.allclose(losses(tmp_path / "run"), losses(debug_run), rtol=1e-5, atol=0)


@pytest.mark.slow
def test_going_on_with_states_in_a_file_is_bit_equal(debug_config, tmp_path):
    config = debug_config.replace(**HOST, **{"train.offload_folder": str(tmp_path / "states"), "train.decay_steps": 20})
    train(config, tmp_path / "straight")
    train(config.replace(**{"train.steps": 10}), tmp_path / "parts")
    train(config, tmp_path / "parts")
    assert (losses(tmp_path / "parts") == losses(tmp_path / "straight")).all()


def test_in_half_precision_the_device_keeps_halves_and_the_host_and_checkpoints_whole_numbers(debug_config, tmp_path):
    half = debug_config.replace(**{"model.compute_dtype": "float16", "train.loss_scale": 1024.0, "train.steps": 6})
    train(half, tmp_path / "device")
    result = train(half.replace(**HOST), tmp_path / "host")
    assert np.allclose(losses(tmp_path / "host"), losses(tmp_path / "device"), rtol=2e-3)
    saved = Checkpoint(result.checkpoint)
    name = "backbone.blocks.0.attention.dense1.weight"
    assert is_matrix(name) and saved.read(name).dtype == np.float32
    assert (saved.read(name) != saved.read(name).astype(np.float16)).any()  # the master, not the device's half


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_optimizer_parallel_ranks_keep_their_rows_on_the_host(debug_config, tmp_path, dtype):
    config = debug_config.replace(**{"model.compute_dtype": dtype, "train.loss_scale": 1024.0, "train.steps": 6})
    train(config, tmp_path / "one")
    launch(config.replace(**HOST, **{"parallel.data": 2, "parallel.optimizer": True}), tmp_path / "two", 2)
    assert np.allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5 if dtype == "float32" else 2e-3)
    one, two = (Checkpoint(tmp_path / name / "checkpoints" / "step-00000006") for name in ("one", "two"))
    assert set(one.tensors) == set(two.tensors) and all(two.read(name).shape == one.shape(name) for name in one.tensors)


def test_a_folder_that_cannot_be_written_or_is_too_small_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="train.offload_folder"):
        StateStore(str(tmp_path / "file"), [10])
    with pytest.raises(InputError, match="GiB of optimizer states"):
        StateStore(str(tmp_path / "states"), [1 << 52])


def test_shards_written_one_tensor_at_a_time_are_safetensors(tmp_path):
    from safetensors.numpy import load_file

    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.ones(3, np.float16),
        "n": np.array(7),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "none": np.zeros((0, 4), np.float32),
    }
    write_shard(tmp_path, 0, tensors)
    found = load_file(tmp_path / "shard-00000.safetensors")
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype and (found[name] == value).all() and found[name].shape == value.shape


LIMITED = """
import json, resource, sys, threading, time
import mindspore, pangu_lab.train
from pangu_lab.presets import load_yaml

def private():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return int(fields["VmData"].split()[0]) >> 10

peak = [private()]
threading.Thread(target=lambda: [time.sleep(0.005) or peak.append(max(peak.pop(), private())) for _ in iter(int, 1)],
                 daemon=True).start()
if int(sys.argv[3]):
    resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[3]) << 20,) * 2)
result = pangu_lab.train.train(load_yaml(sys.argv[1]), sys.argv[2])
print(json.dumps({"step": result.step, "loss": result.loss, "peak": max(peak)}))
"""


def limited(config, folder, megabytes):
    """Train in a process that may have so much private memory (0: any); its result, or None when it fails."""
    folder.mkdir()
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    (folder / "program.py").write_text(LIMITED)
    done = subprocess.run(
        [sys.executable, str(folder / "program.py"), str(folder / "config.yaml"), str(folder / "run"), str(megabytes)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit on private memory is Linux's")
def test_states_larger_than_the_memory_a_process_may_have_train_from_a_file(debug_config, tmp_path):
    large = debug_config.replace(
        **{
            "model.vocab_size": 100_000,
            "model.hidden_size": 512,
            "model.num_layers": 2,
            "data.batch_size": 1,
            "train.steps": 2,
            "train.eval_batches": 1,
            "train.checkpoint_every": 2,
        }
    )  # 57 million parameters, 460 MB of moments
    in_file = large.replace(**HOST, **{"train.offload_folder": str(tmp_path / "states")})
    free, mapped = limited(large, tmp_path / "free", 0), limited(in_file, tmp_path / "mapped", 0)
    limit = (free["peak"] + mapped["peak"]) // 2
    states = 8 * large.model.num_parameters >> 20
    assert free["peak"] - mapped["peak"] > 0.8 * states, (free, mapped)
    assert limited(large, tmp_path / "too-much", limit) is None
    found = limited(in_file, tmp_path / "fits", limit)
    assert found is not None and found["loss"] == pytest.approx(free["loss"], rel=1e-5)
