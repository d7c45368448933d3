"""A page that is loaded while a cell runs gets the widgets' states, and what it then says is answered; a real kernel."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import pytest
import zmq
from jupyter_client.manager import start_new_kernel
from jupyter_client.session import Session

from widgets import reattach

ROOT = Path(__file__).resolve().parents[2]
SETUP = (
    "import pathlib, time\nfrom widgets.base import LabWidget\n"
    "class Ear(LabWidget):\n    _script = 'token_view'\n    def _do_write(self, content):\n"
    "        pathlib.Path('heard').write_text(content['text'])\near = Ear()\near.model_id"
)
BUSY = "while not pathlib.Path('release').exists():\n    time.sleep(0.05)"


@pytest.fixture
def kernel(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path)}
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path), env=environment)
    try:
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def say(client, kind, **content) -> None:
    """A comm message as a page sends it that knows of no subshells."""
    client.shell_channel.send(client.session.msg(kind, content, metadata={"version": "1.0.0"}))


def states_of(client, comm: str, seconds: float = 20.0) -> dict:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        message = client.get_iopub_msg(timeout=seconds)
        data = message["content"].get("data", {})
        if (
            message["msg_type"] == "comm_msg"
            and message["content"]["comm_id"] == comm
            and data.get("method") == "update_states"
        ):
            return data["states"]
    raise AssertionError("no states came")


def test_states_are_given_and_a_widget_answers_while_a_cell_runs(kernel, tmp_path):
    reply = kernel.execute_interactive(SETUP, timeout=60, output_hook=lambda message: None)
    assert reply["content"]["status"] == "ok", reply["content"]
    kernel.execute(BUSY)
    asking = uuid.uuid4().hex
    say(kernel, "comm_open", comm_id=asking, target_name=reattach.CONTROL, data={})
    say(kernel, "comm_msg", comm_id=asking, data={"method": "request_states"})
    states = states_of(kernel, asking)
    (ear,) = [name for name, state in states.items() if "texts" in state["state"]]
    say(kernel, "comm_msg", comm_id=ear, data={"method": "custom", "content": {"do": "write", "text": "stop"}})
    end = time.monotonic() + 10
    while not (tmp_path / "heard").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert (tmp_path / "heard").read_text() == "stop" and not (tmp_path / "release").exists()
    (tmp_path / "release").touch()
    assert kernel.execute_interactive("1", timeout=20, output_hook=lambda message: None)["content"]["status"] == "ok"


def test_only_what_is_the_labs_is_readdressed(monkeypatch):
    monkeypatch.setattr(reattach, "_ours", {"mine"})
    monkeypatch.setattr(reattach, "_answering", ["sub"])
    session = Session(key=b"k")

    def sent(kind, subshell=None, **content):
        message = session.msg(kind, content)
        message["header"]["subshell_id"] = subshell
        return reattach._readdressed(session, [zmq.Frame(part) for part in [b"page", *session.serialize(message)]])

    changed = sent("comm_msg", comm_id="mine", data={"x": 1})
    identities, parts = session.feed_identities(changed)
    found = session.deserialize(parts)
    assert identities == [b"page"] and found["header"]["subshell_id"] == "sub" and found["content"]["data"] == {"x": 1}
    assert sent("comm_msg", comm_id="theirs") is None and sent("comm_msg", "other", comm_id="mine") is None
    assert (
        sent("execute_request", code="1") is None
        and sent("comm_open", comm_id="x", target_name="jupyter.widget") is None
    )
    assert sent("comm_open", comm_id="page", target_name=reattach.CONTROL) and sent("comm_msg", comm_id="page", data={})
    assert reattach._readdressed(session, [zmq.Frame(b"not a message")]) is None
