"""How much memory a conversion takes: that of its largest parameter, whatever the size of the model."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from pangu_lab.checkpoint.mindspore_ckpt import write_ckpt
from pangu_lab.model.parameters import WORD, parameter_specs
from pangu_lab.presets import preset

MEASURE = """
import json, resource, sys
from pangu_lab.checkpoint.convert import convert_checkpoint
done = convert_checkpoint(sys.argv[1], sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
json.dump({"peak": peak, "preset": done.config.preset, "heads": done.config.model.num_heads}, sys.stdout)
"""


@pytest.mark.slow
def test_the_peak_is_that_of_the_largest_parameter(tmp_path):
    specs = parameter_specs(preset("350M").model)  # 1.4 GB as fp32, more than the limit below
    some = np.random.default_rng(0).standard_normal(1 << 20, np.float32).astype(np.float16)
    write_ckpt(tmp_path / "PanguAlpha_fp16.ckpt", ((name, np.resize(some, spec.shape)) for name, spec in specs.items()))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "PanguAlpha_fp16.ckpt"), str(tmp_path / "out")]
    told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    whole = sum(spec.size for spec in specs.values()) * 4
    limit = 1.3 * specs[WORD].size * 4 + 2**30
    assert told["peak"] < limit < whole
    assert (told["preset"], told["heads"]) == ("350M", 16)
