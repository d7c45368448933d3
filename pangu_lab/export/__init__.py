"""A trained model as a folder that runs without model code: MindIR graphs, tokenizer, description, checksums."""

from pangu_lab.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "bundle": ["export_bundle", "export_run"],
        "loading": ["Bundle", "load_bundle"],
        "description": ["read_key", "verify_signature"],
    },
)
