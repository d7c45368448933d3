"""Operations written in C, for CPUs: faster than MindSpore's operators, and optional.

The sources are compiled with the package or at first use (``pangu_lab/compiling.py``). Everything here has a portable
form with the same results up to rounding; without a compiler, on another device or with ``PANGU_LAB_NATIVE=0`` that
form is used, and the log says so once. ``pangu_lab/ops/README.md`` says what each kernel costs and why it is built
as it is.
"""
