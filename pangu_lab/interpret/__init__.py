"""Inspecting a model: the output of every part of the network for a text, and pictures of it."""

from pangu_lab.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, {
    "activations": ["Attention", "attention", "attention_layers", "query_distance", "trace"],
    "pictures": ["parameters_by_part", "plot_attention", "plot_parameters", "plot_query_distance"],
})
