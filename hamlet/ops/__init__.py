"""Fused, differentiable operators for PyTorch: cross-scale windowed attention and dynamic convolution.

Importing this package imports torch and nothing of the model, the training or the retrieval.
"""

from hamlet.ops import flops as _flops  # noqa: F401  registers the operators' arithmetic with PyTorch
from hamlet.ops.attention import cross_scale_attention
from hamlet.ops.backends import use_backend
from hamlet.ops.convolution import dynamic_conv2d
from hamlet.ops.explanation import OPERATORS, available_backends, explain
from hamlet.ops.pyramid import pyramid_attention

__all__ = [
    "OPERATORS",
    "available_backends",
    "cross_scale_attention",
    "dynamic_conv2d",
    "explain",
    "pyramid_attention",
    "use_backend",
]
