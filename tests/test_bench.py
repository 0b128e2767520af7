"""How bench/ measures and shows what it measured: what counts, and in which order."""

from __future__ import annotations

import io
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench import clock, harness, memory, runs, table, yardsticks
from bench.comparison import COPY, PEAK, Comparison, Outcome
from bench.harness import Effort, compare
from bench.peers import natten
from bench.peers.attention import PEERS, Case, exact

ROOT = Path(__file__).parents[1]
MEBIBYTE = 2**20


@pytest.fixture
def comparison():
    outcomes = [
        Outcome("HAMLET (native)", [0.4, 0.3, 9.0], memory=3 * MEBIBYTE),
        Outcome("HAMLET (reference)", [0.2]),
        Outcome("peer", [0.8]),
        Outcome("slow peer", [1.8]),
        Outcome("wrong", problem="wrong by 1.0e+00"),
    ]
    measured = [Outcome(COPY, [0.05]), Outcome(PEAK, [0.1]), Outcome("backbone alone", [0.2])]
    return Comparison("group", "title", operations=8e9, bytes=1e9, outcomes=outcomes, yardsticks=measured)


def run(benchmark, contenders, *, rounds=4, seconds=1e9, **more):
    one = torch.ones(1)
    makers = {name: (lambda run=run: run) for name, run in contenders.items()}
    effort = Effort(rounds=rounds, seconds=seconds)
    return compare(
        benchmark, Comparison("group", "title"), makers, lambda: [one.double()], effort=effort, tolerance=1e-6, **more
    )


def test_the_ratio_is_between_the_fastest_of_both_sides_and_yardsticks_do_not_compete(comparison):
    assert comparison.hamlet.name == "HAMLET (native)"
    assert comparison.strongest_peer.name == "peer"
    assert comparison.ratio == pytest.approx(2)
    assert comparison.limit == pytest.approx(0.1)
    assert (comparison.outcomes[0].median, comparison.outcomes[0].p20, comparison.outcomes[0].p80) == (0.4, 0.3, 9.0)
    assert Comparison.from_plain(json.loads(json.dumps(comparison.plain()))).plain() == comparison.plain()


def test_the_table_fits_marks_the_winner_and_hides_no_loss(comparison):
    comparison.outcomes[1] = Outcome("HAMLET (reference)", [1.6])
    comparison.outcomes[0] = Outcome("HAMLET (native)", [1.0], memory=3 * MEBIBYTE)
    console = Console(width=table.WIDTH, file=io.StringIO())
    table.show([comparison], "machine", console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= table.WIDTH
    assert any("HAMLET loses to peer: 0.80" in line for line in lines)
    assert any(line.strip() == "wrong: wrong by 1.0e+00" for line in lines)
    cells = {row[2]: row[1:] for line in lines if (row := [cell.strip() for cell in line.split("│")])[2:]}
    assert cells["HAMLET (native)"] == [
        "", "HAMLET (native)", "1000.000", "1000.000", "1000.000", "8.0", "1.0", "10", "20", "3.0", "", "",
    ]  # fmt: skip
    assert cells["peer"][0] == "*"
    assert cells["peer"][7:9] == ["12", "25"]


def test_a_wrong_contender_and_one_that_errs_are_shown_and_never_timed(benchmark):
    calls = []

    def wrong():
        calls.append("wrong")
        return [torch.full((1,), 1.5)]

    def errs():
        calls.append("errs")
        raise NotImplementedError("no  such\nkernel")

    def nan():
        return [torch.full((1,), torch.nan)]

    right = [torch.ones(1)]
    found = run(benchmark, {"HAMLET": lambda: right, "wrong": wrong, "errs": errs, "nan": nan})
    assert [outcome.problem for outcome in found.outcomes] == [
        None, "wrong by 5.0e-01", "NotImplementedError: no such kernel", "wrong by inf",
    ]  # fmt: skip
    assert [outcome.seconds for outcome in found.outcomes[1:]] == [[], [], []]
    assert calls == ["wrong", "errs"]
    assert benchmark.extra_info["contenders"]["wrong"] == {"problem": "wrong by 5.0e-01"}


def test_contenders_and_yardsticks_take_turns(benchmark):
    order, right = [], [torch.ones(1)]

    def contender(name):
        return lambda: order.append(name) or right

    limits = {PEAK: yardsticks.peak(1e6), COPY: lambda: order.append("copy") or 1.0}
    found = run(benchmark, {name: contender(name) for name in ("HAMLET", "a", "b")}, rounds=6, yardsticks=limits)
    turns = [order[9:][4 * done : 4 * done + 4] for done in range(6)]
    assert (
        turns
        == [["copy", *a_round] for a_round in (["HAMLET", "a", "b"], ["a", "b", "HAMLET"], ["b", "HAMLET", "a"])] * 2
    )
    assert [outcome.rounds for outcome in (*found.outcomes, *found.yardsticks)] == [6] * 5
    assert all(second > 0 for second in found.yardsticks[0].seconds)


def test_a_slow_contender_takes_part_in_fewer_rounds_spread_over_the_run(benchmark, monkeypatch):
    order, right = [], [torch.ones(1)]
    took = {"HAMLET": 0.01, "a": 0.02, "b": 0.03, "slower": 0.15, "slowest": 0.21}
    contenders = {name: lambda name=name: order.append(name) or right for name in took}
    monkeypatch.setattr(harness, "_weigh", lambda run, patience: (0, took[(run(), order.pop())[1]]))
    found = run(benchmark, contenders, rounds=8, seconds=0.03)
    assert [outcome.rounds for outcome in found.outcomes] == [5, 5, 5, 3, 1]
    assert [outcome.remark for outcome in found.outcomes] == ["", "", "", "", "1 round"]
    assert order.count("slowest") == 2
    assert Comparison.from_plain(found.plain()).outcomes[-1].remark == "1 round"


def test_where_hamlet_fails_the_case_is_kept_and_lost(benchmark):
    right = [torch.ones(1)]
    found = run(benchmark, {"HAMLET (native)": lambda: [torch.zeros(1)], "peer": lambda: right})
    assert benchmark.extra_info["contenders"]["HAMLET (native)"] == {"problem": "wrong by 1.0e+00"}
    assert benchmark.stats.stats.data == found.outcomes[1].seconds
    assert found.failed
    assert [(loss.winner, loss.ratio) for loss in found.losses] == [("peer", 0.0)]
    assert "HAMLET failed; HAMLET loses to peer: 0.00" in table.verdict(found)


def test_where_nobody_is_right_the_case_is_kept(benchmark):
    found = run(benchmark, {"HAMLET": lambda: [torch.zeros(1)], "peer": lambda: 1 / 0})
    assert benchmark.stats is not None
    assert benchmark.extra_info["contenders"]["peer"] == {"problem": "ZeroDivisionError: division by zero"}
    assert found.failed
    assert found.losses == []


def test_what_hamlet_should_have_chosen_is_a_loss_of_its_own(comparison):
    assert [(loss.winner, loss.ratio) for loss in comparison.losses] == [("HAMLET (reference)", 0.5)]
    assert "2.00 x peer; HAMLET loses to HAMLET (reference): 0.50" in table.verdict(comparison)


def test_a_case_in_whose_rounds_the_peak_varied_is_noisy(benchmark, monkeypatch):
    peaks = itertools.cycle([1.0, 1.5])
    monkeypatch.setattr(harness.measured, "peak", lambda operations: lambda: next(peaks))
    found = run(benchmark, {"HAMLET": lambda: [torch.ones(1)]}, rounds=8)
    assert found.spread == pytest.approx(1.5)
    assert found.yardsticks == []
    assert "noisy" in table.verdict(found)


def test_a_case_is_held_to_the_limit_that_it_names(comparison):
    comparison.limits = ["backbone alone"]
    assert comparison.limit == 0.2


def test_a_run_that_no_graph_holds_says_so_and_rotates_its_inputs(monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(runs, "_captured", refuse)
    monkeypatch.setattr(runs, "_cache_bytes", lambda: MEBIBYTE)
    taken = []
    replays = runs.Replays(lambda given: taken.append(given[0]) or given, [torch.ones(MEBIBYTE // 4)])
    for _ in range(4):
        replays()
    assert replays.remark == "no graph"
    assert len({tensor.data_ptr() for tensor in taken}) == 3
    assert taken[3] is taken[0]


def test_on_a_gpu_every_graph_of_a_contender_shares_its_pool(monkeypatch):
    pools = []
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(runs, "_captured", lambda once, given, pool: pools.append(pool) or (lambda: once(given)))
    monkeypatch.setattr(runs, "_cache_bytes", lambda: MEBIBYTE)
    first, second = (runs.Replays(lambda given: given, [torch.ones(MEBIBYTE // 4)]) for _ in range(2))
    assert first.remark == second.remark == ""
    assert [pools.count(pool) for pool in pools] == [3] * 6


def test_a_contender_that_computes_something_near_is_checked_against_its_own_definition(benchmark):
    two = [torch.full((1,), 2.0)]
    own = {"relative": lambda: [torch.full((1,), 2.0, dtype=torch.float64)]}
    found = run(benchmark, {"HAMLET": lambda: [torch.ones(1)], "relative": lambda: two}, other_functions=own)
    assert [outcome.problem for outcome in found.outcomes] == [None, None]


def test_peak_memory_counts_what_a_run_adds_and_frees_again():
    memory.peak(lambda: torch.ones(MEBIBYTE))
    found = memory.peak(lambda: torch.ones(16 * MEBIBYTE).sum())
    if found is not None:
        assert 63 * MEBIBYTE <= found < 72 * MEBIBYTE


def test_the_memory_of_a_graphs_replay_is_that_of_the_run_that_it_holds():
    def replay():
        return []

    replay.as_written = lambda: torch.ones(16 * MEBIBYTE)
    found, _ = harness._weigh(replay, float("inf"))
    assert found is None or found >= 63 * MEBIBYTE


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the bound is Linux's")
def test_the_bound_on_memory_is_the_contenders_own_error_and_is_lifted_again():
    with memory.limited(256 * MEBIBYTE):
        torch.ones(MEBIBYTE)
        with pytest.raises(RuntimeError, match="allocate"):
            torch.ones(512 * MEBIBYTE)
    assert len(torch.ones(128 * MEBIBYTE)) == 128 * MEBIBYTE


def test_without_the_native_kernels_a_product_stands_in_for_the_peak(monkeypatch):
    monkeypatch.setattr(yardsticks, "module", None)
    assert 0 < yardsticks.peak(1e9)() < 100


def test_on_a_gpu_inputs_rotate_until_the_cache_holds_none_of_them():
    inputs = [torch.empty(MEBIBYTE // 4)] * 2
    assert [runs.copies(inputs, cache=size * MEBIBYTE) for size in (0, 1, 2, 100)] == [1, 2, 3, runs.MOST_COPIES]


def test_on_a_gpu_two_moments_are_as_far_apart_as_their_events(monkeypatch):
    class Event:
        ticks = itertools.count(step=250)

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.tick = next(self.ticks)

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.tick - self.tick

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(clock, "now", clock.Moment)
    assert clock.seconds(lambda: None) == 0.25


def test_nattens_definition_is_ours_away_from_the_border():
    case = Case(12, 12, 2.0, batch=1, heads=2, channels=8, softness=1e-3)
    tensors = [tensor.double() for tensor in case.tensors()]
    theirs, ours = natten.definition(case)(*tensors), exact(case)(*tensors)
    inner = (slice(None), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(theirs[inner], ours[inner])
    assert not torch.allclose(theirs, ours)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_every_peer_that_takes_a_radius_for_each_query_gives_the_definition():
    case = Case(8, 4, 1.5, batch=2, heads=2, channels=8)
    tensors = [*case.tensors(), case.radii(0, 1)]
    right = exact(case)(*(tensor.double() for tensor in tensors))
    with torch.compiler.set_stance("force_eager"):
        for name, make in PEERS.items():
            found = make(case, torch.float32)(*tensors)
            torch.testing.assert_close(
                found.double(), right, rtol=1e-4, atol=1e-5, msg=lambda why, n=name: f"{n}: {why}"
            )
