"""Training: the step, the loop around it, and the run folder as the process that trains sees it.

What a run has written is read with ``pangu_lab.runs``.
"""

from pangu_lab.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, {"loop": ["TrainResult", "TrainingFailed", "train"],
                                                      "schedule": ["learning_rate"]})
