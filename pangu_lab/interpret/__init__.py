"""Inspecting a model: the output of every part of the network for a text, pictures of it, and
heads that are found by what they look at."""

from pangu_lab.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "activations": ["Attention", "attention", "attention_layers", "query_distance", "trace"],
        "heads": ["RELATIONS", "HeadScore", "best_heads", "score_heads", "verse_relations"],
        "pictures": [
            "parameters_by_part",
            "plot_attention",
            "plot_heads",
            "plot_parameters",
            "plot_poem",
            "plot_query_distance",
        ],
    },
)
