"""Bad input is refused by name, with what was got and what is taken, before any work is done."""

from __future__ import annotations

import math

import pytest
import torch

from hamlet.ops import cross_scale_attention, dynamic_conv2d, pyramid_attention

QUERY, KEY = torch.zeros(2, 4, 4, 3, 8), torch.zeros(2, 5, 6, 3, 8)
META = torch.zeros(2, 5, 6, 3, 8, device="meta")

ATTENTION = [
    ({"query": QUERY[0]}, ValueError, r"query: got shape \(4, 4, 3, 8\), expected 5 dimensions \(B, Hq, Wq, N, D\)"),
    ({"query": [1.0]}, TypeError, "query: got list, expected a tensor"),
    ({"key": KEY.long()}, TypeError, "key: got dtype torch.int64, expected float32"),
    ({"key": KEY[:, :, :, :2]}, ValueError, r"key: got shape \(2, 5, 6, 2, 8\), expected \(2, any, any, 3, 8\)"),
    ({"key": KEY[:1]}, ValueError, r"key: got shape \(1, 5, 6, 3, 8\)"),
    ({"value": KEY[:, :4]}, ValueError, r"value: got shape \(2, 4, 6, 3, 8\), expected \(2, 5, 6, 3, any\)"),
    ({"value": KEY.double()}, TypeError, "value: got dtype torch.float64, expected that of query, torch.float32"),
    ({"key": META, "value": META}, ValueError, "key: got device meta, expected that of query, cpu"),
    ({"key": KEY[:, :0], "value": KEY[:, :0]}, ValueError, "key: got shape .* expected at least one pixel"),
    ({"radius": "wide"}, TypeError, "radius: got str, expected a finite number"),
    ({"radius": math.nan}, ValueError, "radius: got nan, expected a finite number"),
    (
        {"radius": torch.ones(5)},
        ValueError,
        r"radius: got shape \(5,\), expected one broadcastable to \(B, Hq, Wq, N\)",
    ),
    ({"radius": torch.ones(1, 2, 4, 4, 3)}, ValueError, r"radius: got shape \(1, 2, 4, 4, 3\)"),
    ({"radius": torch.ones(3, dtype=torch.int32)}, TypeError, "radius: got dtype torch.int32"),
    ({"radius": torch.ones(3, dtype=torch.float8_e4m3fn)}, TypeError, "radius: got dtype torch.float8_e4m3fn"),
    ({"radius": torch.ones(3, device="meta")}, ValueError, "radius: got device meta"),
    ({"max_radius": 0.4}, ValueError, "max_radius: got 0.4, expected a finite number >= 0.5"),
    ({"max_radius": math.inf}, ValueError, "max_radius: got inf"),
    ({"max_radius": torch.tensor(2.0)}, TypeError, "max_radius: got Tensor"),
    ({"softness": 0.0}, ValueError, "softness: got 0.0, expected a finite number > 0"),
    ({"softness": -1}, ValueError, "softness: got -1"),
    ({"softness": math.nan}, ValueError, "softness: got nan"),
    ({"scale": math.inf}, ValueError, "scale: got inf"),
    ({"scale": True}, TypeError, "scale: got bool"),
    ({"gate": 0.5}, TypeError, "gate: got float, expected a tensor broadcastable to"),
    ({"gate": torch.ones(4, 4)}, ValueError, r"gate: got shape \(4, 4\)"),
    ({"query_extent": [[4, 4], [4, 4]]}, TypeError, "query_extent: got list, expected an int tensor"),
    ({"query_extent": torch.ones(2, 2)}, TypeError, "query_extent: got dtype torch.float32, expected an integer dtype"),
    (
        {"query_extent": torch.ones(3, 2).long()},
        ValueError,
        r"query_extent: got shape \(3, 2\), expected \(B, 2\) = \(2, 2\)",
    ),
    (
        {"query_extent": torch.tensor([[4, 4], [5, 4]])},
        ValueError,
        r"query_extent: got \[\[4, 4\], \[5, 4\]\], expected each",
    ),
    ({"key_extent": torch.tensor([[0, 4], [5, 4]])}, ValueError, "key_extent: got .* within"),
    ({"backend": "cudnn"}, ValueError, "backend: got 'cudnn', expected one of 'cuda', 'triton', 'native', 'reference'"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), ATTENTION, ids=lambda value: next(iter(value)) if isinstance(value, dict) else ""
)
def test_cross_scale_attention(change, error, message):
    arguments = {"query": QUERY, "key": KEY, "value": KEY, "radius": 1.0, "max_radius": 2.0} | change
    with pytest.raises(error, match=message):
        cross_scale_attention(**arguments)


LEVELS = [torch.zeros(2, 4, 4, 3, 8), torch.zeros(2, 2, 2, 3, 8)]
SQUARE = [[1.0, 1.0], [1.0, 1.0]]

PYRAMID = [
    ({"queries": LEVELS[0]}, TypeError, "queries: got Tensor, expected a list"),
    ({"queries": []}, ValueError, "queries: got 0 levels"),
    ({"keys": LEVELS[:1]}, ValueError, "keys: got 1 levels, expected 2"),
    ({"keys": [LEVELS[0], LEVELS[1][..., :4]]}, ValueError, r"keys\[1\]: got shape"),
    ({"values": [LEVELS[0], LEVELS[1].half()]}, TypeError, r"values\[1\]: got dtype torch.float16"),
    ({"values": [LEVELS[0], LEVELS[0]]}, ValueError, r"pair \[0\]\[1\]: value: got shape"),
    ({"radius": [[1.0, 1.0]]}, ValueError, "radius: got a list of 1 with rows of 2, expected a 2 x 2 nested list"),
    ({"radius": 1.0}, ValueError, "radius: got float, expected a 2 x 2 nested list"),
    ({"radius": [[None] * 2] * 2}, ValueError, "radius: got None for every pair"),
    ({"radius": [[1.0, torch.ones(7)], [1.0, 1.0]]}, ValueError, r"pair \[0\]\[1\]: radius: got shape \(7,\)"),
    ({"max_radius": [[1.0, 1.0], [1.0, 0.2]]}, ValueError, r"pair \[1\]\[1\]: max_radius: got 0.2"),
    ({"max_radius": None}, ValueError, "max_radius: got NoneType"),
    ({"gate": [[None], [None]]}, ValueError, "gate: got a list of 2 with rows of 1, 1"),
    ({"softness": 0.0}, ValueError, "softness: got 0.0"),
    ({"extents": [torch.ones(2, 2).long()]}, ValueError, "extents: got 1 levels"),
    ({"extents": [torch.full((2, 2), 3)] * 2}, ValueError, r"extents\[1\] on queries: got"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), PYRAMID, ids=lambda value: next(iter(value)) if isinstance(value, dict) else ""
)
def test_pyramid_attention(change, error, message):
    arguments = {"queries": LEVELS, "keys": LEVELS, "values": LEVELS, "radius": SQUARE, "max_radius": SQUARE} | change
    with pytest.raises(error, match=message):
        pyramid_attention(**arguments)


INPUT, WEIGHT = torch.zeros(2, 8, 5, 6), torch.zeros(2, 8, 2, 3, 3)

CONVOLUTION = [
    ({"input": INPUT[0]}, ValueError, r"input: got shape \(8, 5, 6\), expected 4 dimensions \(B, Cin, H, W\)"),
    ({"input": INPUT.int()}, TypeError, "input: got dtype torch.int32"),
    ({"weight": WEIGHT[0]}, ValueError, "weight: got shape .* expected 5 dimensions"),
    ({"weight": WEIGHT[:1]}, ValueError, r"weight: got shape \(1, 8, 2, 3, 3\), expected \(2, any, 2, any, any\)"),
    ({"weight": WEIGHT.double()}, TypeError, "weight: got dtype torch.float64, expected that of input"),
    ({"weight": WEIGHT[..., :2]}, ValueError, "weight: got a kernel of 3 x 2, expected odd sizes"),
    ({"weight": WEIGHT.to("meta")}, ValueError, "weight: got device meta"),
    ({"groups": 3}, ValueError, "groups: got 3, expected a divisor of Cin = 8"),
    ({"groups": 0}, ValueError, "groups: got 0, expected an int >= 1"),
    ({"groups": 2.0}, TypeError, "groups: got float"),
    ({"weight": WEIGHT[:, :6]}, ValueError, "groups: got 4, expected a divisor of Cout = 6"),
    ({"stride": 3}, ValueError, "stride: got 3, expected 1 or 2"),
    ({"dilation": 0}, ValueError, "dilation: got 0, expected an int >= 1"),
    ({"dilation": 1.5}, TypeError, "dilation: got float"),
    ({"dilation": [1, 2, 3]}, ValueError, "dilation: got 3 blocks, expected a number that divides groups = 4"),
    ({"dilation": []}, ValueError, "dilation: got 0 blocks"),
    ({"dilation": [1, 0]}, ValueError, r"dilation\[1\]: got 0"),
    ({"dilation": [1, 3], "max_dilation": 2}, ValueError, r"dilation: got \[1, 3\], expected at most max_dilation = 2"),
    ({"dilation": torch.ones(2, 2)}, TypeError, "dilation: got dtype torch.float32"),
    ({"dilation": torch.ones(3, 2).int()}, ValueError, r"dilation: got shape \(3, 2\), expected \(B, T\) = \(2, 2\)"),
    (
        {"dilation": torch.tensor([[1, 2], [0, 1]])},
        ValueError,
        r"dilation: got \[\[1, 2\], \[0, 1\]\], expected every entry within 1",
    ),
    ({"dilation": torch.tensor([[1, 2], [3, 1]]), "max_dilation": 2}, ValueError, "within 1 and max_dilation = 2"),
    ({"bias": torch.zeros(7)}, ValueError, r"bias: got shape \(7,\), expected \(8,\) or \(2, 8\)"),
    ({"bias": torch.zeros(8).half()}, TypeError, "bias: got dtype torch.float16"),
    ({"residual": 1}, TypeError, "residual: got int, expected a bool"),
    ({"residual": True, "stride": 2}, ValueError, "residual: got Cin = 8, Cout = 8, stride = 2"),
    ({"extent": torch.tensor([[5, 6], [6, 6]])}, ValueError, "extent: got .* expected each"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), CONVOLUTION, ids=lambda value: next(iter(value)) if isinstance(value, dict) else ""
)
def test_dynamic_conv2d(change, error, message):
    arguments = {"input": INPUT, "weight": WEIGHT, "groups": 4} | change
    with pytest.raises(error, match=message):
        dynamic_conv2d(**arguments)
