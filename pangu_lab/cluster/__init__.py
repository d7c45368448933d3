"""One model over several processes: generation, evaluation and serving with tensor and pipeline parallelism."""

from pangu_lab.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "front": ["Cluster", "ClusterRunner", "cluster_engine"],
        "places": ["Places", "find_places"],
        "shared": ["SharedModel"],
    },
)
