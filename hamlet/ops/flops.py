"""The operators' arithmetic for ``torch.utils.flop_counter``: what the window needs, at its largest radius.

A multiply and an add are two operations, as PyTorch counts them. Windows are counted at ``max_radius`` on the whole
grid, since a formula sees shapes and not contents: smaller radii and extents make the true figure smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.flop_counter import register_flop_formula

from hamlet.ops import attention, convolution, pyramid
from hamlet.ops.reference.windows import spans

Shape = Sequence[int]


def window_pairs(queries: Shape, keys: Shape, reach: float) -> int:
    """How many (query, key) pairs of one sample and head lie closer than ``reach`` key pixels, of grids (H, W).

    Example:
        >>> window_pairs((3, 3), (3, 3), reach=1.5)  # a 3 x 3 window, cut at the border
        49
    """
    per_axis = [
        sum(span.keys.stop - span.keys.start for span in spans(q, k, None, None, reach, block=1))
        for q, k in zip(queries, keys, strict=True)
    ]
    return per_axis[0] * per_axis[1]


def _attention_products(query: Shape, key: Shape, value: Shape, max_radius: float, softness: float) -> tuple[int, int]:
    """Operations of one product of the window with the channels of query, and with those of value."""
    batch, heads = query[0], query[3]
    pairs = 2 * batch * heads * window_pairs(query[1:3], key[1:3], max_radius + softness)
    return pairs * query[4], pairs * value[4]


def _attention(query: Shape, key: Shape, value: Shape, *rest: Any, **_: Any) -> int:
    max_radius, softness = rest[4:6]
    return sum(_attention_products(query, key, value, max_radius, softness))


def _attention_backward(_out: Shape, _lse: Shape, query: Shape, key: Shape, value: Shape, *rest: Any, **_: Any) -> int:
    max_radius, softness = rest[4:6]
    by_query, by_value = _attention_products(query, key, value, max_radius, softness)
    return 3 * by_query + 2 * by_value


def _pyramid(queries: Sequence[Shape], keys: Sequence[Shape], values: Sequence[Shape], *rest: Any, **_: Any) -> int:
    return sum(map(sum, _pyramid_products(queries, keys, values, *rest)))


def _pyramid_backward(_outs: Any, queries: Any, keys: Any, values: Any, *rest: Any, **_: Any) -> int:
    return sum(3 * by_query + 2 * by_value for by_query, by_value in _pyramid_products(queries, keys, values, *rest))


def _pyramid_products(
    queries: Sequence[Shape], keys: Sequence[Shape], values: Sequence[Shape], *rest: Any
) -> list[tuple[int, int]]:
    indices, max_radius, softness = rest[3], rest[6], rest[7]
    places = [divmod(index, len(queries)) for index in indices]
    return [
        _attention_products(queries[i], keys[j], values[j], bound, softness)
        for (i, j), bound in zip(places, max_radius, strict=True)
    ]


def _convolution(input: Shape, weight: Shape, *rest: Any, **_: Any) -> int:
    stride = rest[5]
    height, width = ((size + stride - 1) // stride for size in input[2:])
    batch, outputs, inputs, kernel_height, kernel_width = weight
    return 2 * batch * outputs * inputs * kernel_height * kernel_width * height * width


def _convolution_backward(_grad: Shape, input: Shape, weight: Shape, *rest: Any, **_: Any) -> int:
    return 2 * _convolution(input, weight, *rest)


for _operator, _formula, _backward_formula in (
    (attention.operator, _attention, _attention_backward),
    (pyramid.operator, _pyramid, _pyramid_backward),
    (convolution.operator, _convolution, _convolution_backward),
):
    register_flop_formula(_operator.forward.overloadpacket)(_formula)
    register_flop_formula(_operator.backward.overloadpacket)(_backward_formula)
