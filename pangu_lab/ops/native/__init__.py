"""Operations written in C, for CPUs: quicker than MindSpore's operators, and never needed.

The sources are compiled with the package or at the first use (``pangu_lab/compiling.py``). Everything here has a portable
form that gives the same numbers to rounding; without a compiler, on another device or with
``PANGU_LAB_NATIVE=0`` that form does the work, and the log says so once. What each kernel costs, and why it is as it is,
stands in ``pangu_lab/ops/README.md``.
"""
