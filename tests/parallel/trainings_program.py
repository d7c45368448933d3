"""What each rank of ``test_layouts`` runs: the trainings listed in ``trainings.json``, one after the other.

Starting processes costs more than training the debug preset, so all layouts of one number of processes share them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pangu_lab.launch.worker import read_config, run_rank


def work(run: Path) -> str:
    from pangu_lab.train import train

    for folder, changes in json.loads((run / "trainings.json").read_text(encoding="utf-8")):
        train(read_config(run).replace(**changes), run / "runs" / folder)
    return "trained"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", required=True)
    folder = Path(parser.parse_args().run)
    run_rank(folder, lambda rank: work(folder))
