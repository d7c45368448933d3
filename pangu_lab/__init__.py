"""PanGu-α lab: the whole life of a PanGu-α language model in MindSpore, from text to a served page.

    from pangu_lab import PanguLM

    print(PanguLM.load("verse").generate("《春夜》\\n"))

The public names, in the order of a model's life cycle. A function with the name of a package is imported from it:
``pangu_lab.train.train``, ``pangu_lab.launch.launch``, ``pangu_lab.evaluate.evaluate``, ``pangu_lab.serve.serve``.

- ``RunConfig``, ``ModelConfig``, ``SamplingConfig``: settings; ``preset(name)`` and ``load_yaml(path)`` make whole ones.
- ``train_vocabulary``, ``load_tokenizer``: text to tokens.
- ``prepare``, ``open_dataset``: texts to packed records, and records to batches.
- ``list_runs``, ``read_curves``: what trainings have written.
- ``PanguLM``: a model ready to write, to score and to be looked into; ``load`` opens any of them.
- ``perplexity``: how well a model predicts held-out text.
- ``export_run``, ``load_bundle``: a model as a folder that needs no model code.
- ``InputError``: what every function raises for wrong input, with one line that says what to do.

Importing this package is quick: each name is looked up when it is first asked for.
"""

import os

from pangu_lab.lazy import lazy_names

__version__ = "0.2.0"

# MindSpore's log level is read once, when it is first imported; its warnings would drown the program's own words.
os.environ.setdefault("GLOG_v", "3")

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "config": ["ModelConfig", "RunConfig", "SamplingConfig"],
        "presets": ["load_yaml", "preset"],
        "tokenizer": ["load_tokenizer", "train_vocabulary"],
        "data": ["open_dataset", "prepare"],
        "runs": ["list_runs", "read_curves"],
        "lm": ["PanguLM"],
        "evaluate": ["perplexity"],
        "export": ["export_run", "load_bundle"],
        "errors": ["InputError"],
    },
)
