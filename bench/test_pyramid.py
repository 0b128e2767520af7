"""All pairs of a pyramid's levels in one call, beside the sum of one call a pair."""

from __future__ import annotations

import pytest

from bench.measure.pyramid import cases, measure

FULL = {"B8": ((28, 14, 7), 8, 8, 32), "B1": ((28, 14, 7), 1, 8, 32)}
SMALL = ((8, 4, 2), 2, 2, 16)


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_pyramid(name, backward, full, judged, benchmark, effort):
    group = "forward + backward" if backward else "forward"
    judged(measure(benchmark, group, cases(*(FULL[name] if full else SMALL)), effort, backward=backward))
