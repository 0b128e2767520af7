"""How bench/ measures and shows: what counts as a peer, and the shares of the yardsticks."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from bench import table, yardsticks
from bench.harness import Comparison, Outcome, compare


@pytest.fixture
def comparison():
    outcomes = [Outcome("HAMLET (native)", [0.4, 0.3, 9.0]), Outcome("peer", [0.8]), Outcome("wrong", problem="wrong")]
    measured = [Outcome("copy of the input", [0.1]), Outcome("peak", [0.2])]
    return Comparison("group", "title", operations=8e9, bytes=1e9, outcomes=outcomes, yardsticks=measured)


def test_a_yardstick_is_never_the_strongest_peer(comparison):
    assert comparison.strongest_peer.name == "peer"
    assert table.verdict(comparison) == "2.00 x peer"


def test_the_table_gives_each_contender_its_share_of_each_yardstick(comparison):
    console = Console(width=table.WIDTH, file=io.StringIO())
    table.show([comparison], "machine", console)
    rows = [[cell.strip() for cell in line.split("│")] for line in console.file.getvalue().splitlines() if "│" in line]
    shares = {row[2]: row[-4:-2] for row in rows}
    assert shares["HAMLET (native)"] == ["25", "50"]
    assert shares["peer"] == ["12", "25"]
    assert shares["wrong"] == shares["peak"] == shares["copy of the input"] == ["", ""]
    assert next(row for row in rows if row[1] == "*")[2] == "HAMLET (native)"


def test_yardsticks_are_measured_in_every_round(benchmark):
    one = torch.ones(1)
    comparison = compare(
        benchmark,
        Comparison("group", "title", 1.0, 1.0),
        {"HAMLET": lambda: lambda: [one], "peer": lambda: lambda: [one]},
        lambda: [one.double()],
        rounds=4,
        tolerance=0.0,
        yardsticks={"copy": yardsticks.copy(one), "peak": yardsticks.peak(1e6)},
    )
    assert [len(found.seconds) for found in (*comparison.outcomes, *comparison.yardsticks)] == [4] * 4
    assert all(second > 0 for yardstick in comparison.yardsticks for second in yardstick.seconds)


def test_without_the_native_kernels_a_product_stands_in_for_the_peak(monkeypatch):
    monkeypatch.setattr(yardsticks, "module", None)
    assert 0 < yardsticks.peak(1e9)() < 100
