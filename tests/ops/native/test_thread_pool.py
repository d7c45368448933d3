"""The kernels' threads in forked children: a child computes, whatever the parent's threads did when it was made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from pangu_lab.compiling import compiler
from pangu_lab.ops.native import train

pytestmark = [
    pytest.mark.skipif(compiler() is None, reason="no C compiler"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
]
ARRAY = np.ones(400_000, np.float32)  # several ranges for each thread


def child_computes(seconds: float = 20.0) -> bool:
    """Fork; whether the child came to the right sum, and in time."""
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)  # a child that hangs is ended by it
        os._exit(0 if train.squared_norm(train.library(), [ARRAY]) == ARRAY.size else 1)
    return os.waitpid(pid, 0)[1] == 0


def fork_many(forks: int) -> None:
    train.library().functions.set_up(
        4, 512
    )  # more threads than this machine may have: they are often between two states
    train.squared_norm(train.library(), [ARRAY])
    ended = threading.Event()

    def compute() -> None:
        while not ended.is_set():
            assert train.squared_norm(train.library(), [ARRAY]) == ARRAY.size
            time.sleep(0.0003)  # the pool's threads fall asleep, and are woken, all the time

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        assert all(child_computes() for _ in range(forks)), "a forked child did not end, or not with the right sum"
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("forks", [200, pytest.param(4000, marks=pytest.mark.slow)])
@pytest.mark.timeout(1200)
def test_no_child_hangs_that_was_forked_after_or_during_a_kernel(forks):
    code = f"from tests.ops.native.test_thread_pool import fork_many; fork_many({forks})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)  # the pool of this process stays as it is
