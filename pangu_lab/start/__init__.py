"""One's own text to a trained model in one step, and before the first step what to expect of it."""

from pangu_lab.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "advice": ["Advice", "advise", "default_folder"],
        "making": ["Started", "start", "tell"],
        "splitting": ["Split", "split_text"],
    },
)
