"""The network: ``pangu.py`` defines all of it, ``parameters.py`` lists every parameter by its published name."""

from pangu_lab.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "pangu": ["PanguLogits", "PanguLoss", "PanguStage", "Parts", "Stack", "Weights"],
        "parameters": ["QUERY", "QUERY_LAYER", "initial_weights", "parameter_specs"],
    },
)
