"""Training: the step, the loop around it, and the run folder from the training process's side.

``pangu_lab.runs`` reads what a run has written.
"""

from pangu_lab.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__, {"training": ["TrainResult", "train"], "loop": ["TrainingFailed"], "schedule": ["learning_rate"]}
)
