"""Which lines of a log are shown: the ones that tell why the rank ended."""

from __future__ import annotations

from pangu_lab.launch.logs import useful_lines

COMPILE_ERROR = """\
loading
[ERROR] ANALYZER(1,7f,python):2026-01-01 [evaluator.cc:764] Run] infer failed
Traceback (most recent call last):
  File "/home/me/first.py", line 1, in <module>
    int("x")
ValueError: an earlier one, dealt with
Traceback (most recent call last):
  File "/home/me/train.py", line 20, in <module>
    main()
  File "/home/me/train.py", line 19, in main
    network(x)
    ^^^^^^^^^^
  File "/env/lib/python3.11/site-packages/mindspore/graph/api.py", line 2354, in compile
    result = self._graph_executor.compile(
             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
ValueError: For 'MatMul' the input dimensions must be equal, but got 'x1_col': 3 and 'x2_row': 2.

----------------------------------------------------
- C++ Call Stack: (For framework developers)
----------------------------------------------------
mindspore/ops/infer/ops_func_impl//matmul.cc:78 InferShape2D

----------------------------------------------------
- The Traceback of Net Construct Code:
----------------------------------------------------
# 0 In file /home/me/net.py:17, 15~28
        return self.inner(x) + 1
               ^~~~~~~~~~~~~
# 1 In file /home/me/net.py:11, 12~25
        y = self.mm(x, x)
            ^~~~~~~~~~~~~
 (See file 'analyze_fail.ir' for more details.)
[INFO] DISTRIBUTED(1,7f,python):2026-01-01 [tcp_client.cc:367] Start] Event base dispatch success!
"""


def lines_of(tmp_path, text: str, **more) -> list[str]:
    path = tmp_path / "rank_0.log"
    path.write_text(text, encoding="utf-8")
    return useful_lines(path, **more)


def test_a_compile_error_is_told_by_its_first_line_the_networks_code_and_our_frame(tmp_path):
    assert lines_of(tmp_path, COMPILE_ERROR) == [
        "ValueError: For 'MatMul' the input dimensions must be equal, but got 'x1_col': 3 and 'x2_row': 2.",
        "# 1 In file /home/me/net.py:11, 12~25",
        "        y = self.mm(x, x)",
        '  File "/home/me/train.py", line 19, in main',
        "    network(x)",
    ]


def test_numbered_reasons_after_the_exception_are_kept(tmp_path):
    text = (
        'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    init()\n'
        "RuntimeError: Failed to initialize the cluster. It may be:\n1.One.\n2.Two.\n\n" + "-" * 52 + "\n- C++\n"
    )
    assert lines_of(tmp_path, text)[:3] == [
        "RuntimeError: Failed to initialize the cluster. It may be:",
        "1.One.",
        "2.Two.",
    ]


def test_a_crash_in_native_code_is_told_by_the_first_error_lines(tmp_path):
    text = "step 1\n" + "".join(f"[ERROR] KERNEL: number {i}\n" for i in range(30)) + "the end\n"
    assert lines_of(tmp_path, text, limit=3) == [f"[ERROR] KERNEL: number {i}" for i in range(3)]


def test_without_an_error_the_last_lines_are_shown_and_no_noise(tmp_path):
    text = "".join(f"line {i}\n\n[INFO] DISTRIBUTED noise\n" for i in range(20))
    assert lines_of(tmp_path, text, limit=2) == ["line 18", "line 19"]


def test_a_missing_log_and_bytes_that_are_no_text_do_not_matter(tmp_path):
    assert useful_lines(tmp_path / "none") == []
    path = tmp_path / "b.log"
    path.write_bytes(b"\xff\xfe broken\n" + "错误\n".encode())
    assert useful_lines(path)[-1] == "错误"
