"""``python -m pangu_lab.cli``: the same command line where the ``pangu-lab`` script is not on the path."""

from __future__ import annotations

import sys

from pangu_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
