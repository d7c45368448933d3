"""The operations of the model, under one name each, and the two back ends that make them.

``portable.Portable`` uses MindSpore's operators, ``native.cells.Kernels`` C kernels. On a CPU the cost of an operator
differs by up to a factor of ten between forms that compute the same thing; each module here says which form was
chosen and why. Everything works in graph mode, keeps activations as rows (batch·seq, hidden), and is differentiable;
where MindSpore's own backward pass is wasteful, a ``bprop`` is written beside the forward pass.
"""

from pangu_lab.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {"attention": ["BranchMask", "DocumentMask"], "backend": ["Backend", "training_backend"], "portable": ["Portable"]},
)
