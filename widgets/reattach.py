"""Lets a reloaded page get its widgets back at once, and use them, while a cell runs.

JupyterLab asks the kernel for the state of all widgets when a page is loaded, and ipykernel queues the request behind
the running cell: until its end every widget says "Loading widget...". Here the request, and the messages of a page
that knows of no subshells yet to the lab's own widgets, go to a subshell made for them. ipykernel 7 has no public way
to do so; where its internals differ from those of 7.4 nothing is changed, and widgets come back when the cell has
ended.
"""

from __future__ import annotations

from typing import Any

CONTROL = "jupyter.widget.control"
_answering: list[str] = []  # our subshell, once it is there
_ours: set[str] = set()  # comms whose messages go there


def answers(comm_id: str) -> None:
    """What a page says through this comm is answered while a cell runs."""
    _ours.add(comm_id)
    _answer_while_busy()


def _answer_while_busy() -> None:
    """Begin, in a kernel that can."""
    kernel = _kernel()
    thread = getattr(kernel, "shell_channel_thread", None)
    parts = (
        (thread, "manager"),
        (kernel, "shell_channel_thread_main"),
        (getattr(thread, "manager", None), "_create_subshell"),
    )
    if _answering or not all(hasattr(owner, name) for owner, name in parts):
        return
    thread.io_loop.add_callback(_begin, kernel)


def _kernel() -> Any:
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return getattr(get_ipython(), "kernel", None)


def _begin(kernel: Any) -> None:
    """In the thread that hands out the messages of the shell channel."""
    if _answering:
        return
    manager = kernel.shell_channel_thread.manager
    _answering.append(manager._create_subshell())

    async def hand_out(message: Any) -> None:
        changed = _readdressed(kernel.session, message)
        if changed is None:
            await kernel.shell_channel_thread_main(message)
        else:
            manager.get_shell_channel_to_subshell_socket(_answering[0]).send_multipart(changed)

    kernel.shell_stream.on_recv(hand_out, copy=False)


def _readdressed(session: Any, message: Any) -> list[Any] | None:
    """A message to the main shell that ours is to answer, addressed to ours; None for any other."""
    try:
        identities, parts = session.feed_identities(message, copy=False)
        found = session.deserialize(parts, content=False, copy=False)
        kind, asked = found["header"]["msg_type"], found["header"].get("subshell_id")
        content = session.unpack(found["content"]) if kind in ("comm_open", "comm_msg") and asked is None else {}
    except Exception:  # not for us to judge: the kernel says what is wrong with it
        return None
    if kind == "comm_open" and content.get("target_name") == CONTROL:
        _ours.add(content["comm_id"])
    if content.get("comm_id") not in _ours:
        return None
    header = {**found["header"], "subshell_id": _answering[0]}
    whole = {**found, "header": header, "content": content}
    return [*session.serialize(whole, identities), *found["buffers"]]
