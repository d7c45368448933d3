"""Fixtures for all tests: quiet MindSpore, and the optional folder of real texts and reference files."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("lab", deadline=None)  # how long an example takes says more of the machine than of the code
settings.load_profile("lab")
os.environ.setdefault("GLOG_v", "3")  # MindSpore: errors only; read when it is first imported
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Compiled code and graphs of these tests lie apart from the user's: each time, the tests begin with none."""
    os.environ["PANGU_LAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder named by PANGU_LAB_DATA; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("PANGU_LAB_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}: set PANGU_LAB_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def debug_data(tmp_path_factory):
    """The shipped sample with a vocabulary of 512, in records of 65 tokens: ``train`` and ``heldout`` below it."""
    from pangu_lab.data import prepare, sample_files
    from pangu_lab.tokenizer import load_tokenizer, train_vocabulary

    folder = tmp_path_factory.mktemp("debug_data")
    train_vocabulary(sample_files("train"), folder / "tokenizer", 512)
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    for part in ("train", "heldout"):
        prepare(sample_files(part), folder / part, tokenizer, record_length=65, documents="block")
    return folder


@pytest.fixture(scope="session")
def debug_config(debug_data):
    """The debug preset on that data, with two of its four layers: what takes the time is compiling, layer by layer."""
    from pangu_lab.presets import preset

    return preset("debug").replace(
        **{"data.path": str(debug_data / "train"), "model.num_layers": 2, "data.eval_path": str(debug_data / "heldout")}
    )


@pytest.fixture(scope="session")
def debug_run(debug_config, tmp_path_factory):
    """A finished run of 20 steps of the debug preset."""
    from pangu_lab.train import train

    folder = tmp_path_factory.mktemp("runs") / "debug"
    train(debug_config, folder)
    return folder


@pytest.fixture(scope="session")
def debug_bundle(debug_run, tmp_path_factory):
    """A real bundle of the debug preset, exported once, with room for many sequences."""
    from pangu_lab.export import export_run

    return export_run(debug_run, tmp_path_factory.mktemp("exports") / "debug", slots=1024)


@pytest.fixture
def two_hosts():
    """Two hosts with networks of their own, joined by a cable; skips where the machine does not allow it."""
    from tests.hosts import joined_hosts

    with joined_hosts() as hosts:
        if not hosts:
            pytest.skip("this machine does not allow network namespaces")
        yield hosts


@pytest.fixture(scope="session")
def another_namespace() -> list[str]:
    """Words before a command that give it a pid namespace of its own."""
    words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not allow pid namespaces")
    return words
