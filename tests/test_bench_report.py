"""What becomes of a run of bench/: its JSON, the report made of it, and the README's section."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from bench import readme, reasons, report, results

ROOT = Path(__file__).parents[1]

app = Typer()
app.command()(report.main)


def pytest_bench(*arguments):
    command = [sys.executable, "-m", "pytest", "bench/test_call_overhead.py", "-q", "-k", "convolution", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """JSON of a quick run, kept in a storage that pytest-benchmark compares with."""
    folder = tmp_path_factory.mktemp("bench")
    pytest_bench("--benchmark-json", str(folder / "run.json"), "--benchmark-autosave", f"--benchmark-storage={folder}")
    return folder


def test_benchmark_compare_shows_the_saved_run_beside_the_new_one(saved):
    shown = pytest_bench("--benchmark-compare", f"--benchmark-storage={saved}")
    assert "(NOW)" in shown
    assert "(0001_" in shown


def test_benchmark_disable_checks_and_times_nothing():
    assert "2 passed" in pytest_bench("--benchmark-disable")


def test_the_json_says_where_it_was_measured_and_every_contender(saved):
    plain = json.loads((saved / "run.json").read_text())
    assert plain["machine_info"]["hamlet"]["threads"] == 1
    assert {"id", "dirty"} <= plain["commit_info"].keys()
    assert len(plain["benchmarks"]) == 2
    for case in plain["benchmarks"]:
        info = case["extra_info"]
        assert len(case["stats"]["data"]) == 1
        assert info["contenders"][info["hamlet"]]["median"] == pytest.approx(case["stats"]["median"], rel=1e-5)
        assert info["ratio"] == pytest.approx(
            info["contenders"][info["strongest_peer"]]["median"] / case["stats"]["median"], rel=1e-4
        )


def test_the_report_of_a_run_has_every_case_and_pictures(saved, tmp_path):
    done = CliRunner().invoke(app, [str(saved / "run.json"), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "tables.md").read_text()
    assert text.count("grouped trick |") >= 2
    assert results.read(saved / "run.json").line in text
    pictures = list(tmp_path.glob("*.png"))
    assert pictures
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"({picture.name})" in text


def test_the_report_refuses_other_files_and_parts_of_other_runs(saved, tmp_path):
    other = tmp_path / "other.json"
    other.write_text("[]")
    plain = json.loads((saved / "run.json").read_text())
    plain["commit_info"]["id"] = "another"
    (tmp_path / "part.json").write_text(json.dumps(plain))
    for files, why in (
        ([other], "not a JSON file of"),
        ([tmp_path / "missing.json"], "No such file"),
        ([saved / "run.json", tmp_path / "part.json"], "expected parts of one run"),
        ([], "expected at least one"),
    ):
        done = CliRunner().invoke(app, list(map(str, files)))
        assert done.exit_code == 2
        assert why in done.output


def test_a_kept_run_has_all_but_the_single_rounds(saved, tmp_path):
    found = results.read(saved / "run.json")
    results.write(found, tmp_path / results.RUN)
    again = results.read(tmp_path / results.RUN)
    assert [c.plain() for c in again.comparisons] == [c.plain() for c in found.comparisons]
    assert all("data" not in case["stats"] for case in again.plain["benchmarks"])


def test_every_loss_that_is_kept_needs_a_reason_that_covers_it(saved, monkeypatch, tmp_path):
    found = results.read(saved / "run.json")
    for comparison in found.comparisons:
        for outcome in comparison.timed:
            outcome.summary["median"] = 2.0 if outcome is comparison.hamlet else 4.0 if outcome.ours else 1.0
    file = tmp_path / "reasons.yaml"
    monkeypatch.setattr(reasons, "REASONS", file)
    covered, other = (comparison.name for comparison in found.comparisons)

    def write(least, *more):
        entries = [{"case": covered, "least": least, "reason": "It is written so."}, *more]
        file.write_text(json.dumps(entries))

    write(0.5)
    with pytest.raises(ValueError, match="for each loss") as missing:
        readme.check_reasons([found])
    assert other in str(missing.value)
    assert covered not in str(missing.value)
    assert "It is written so." in readme.section([found])
    assert "Of 2 cases HAMLET loses 2; failed: 0" in readme.section([found])
    every = {"case": "convolution *", "least": 0.2, "reason": "So are all."}
    write(0.6, every)
    readme.check_reasons([found])
    assert "It is written so." not in readme.section([found])
    write(0.5, every, {"case": "no such case*", "least": 0.5, "reason": "None."})
    with pytest.raises(ValueError, match="there is none for no such case"):
        readme.check_reasons([found])
    file.write_text("- case: '*'\n  why: x\n")
    with pytest.raises(ValueError, match="expected a list of case, least, reason"):
        readme.check_reasons([found])


def test_a_backend_named_in_the_environment_is_refused():
    command = [sys.executable, "-m", "pytest", "bench/test_call_overhead.py", "-q"]
    environment = {**os.environ, "HAMLET_BACKEND": "reference"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "HAMLET_BACKEND=reference is set: bench/ measures what a user gets without it" in done.stdout + done.stderr


def test_the_report_says_how_to_time_noisy_cases_again(saved, tmp_path):
    plain = json.loads((saved / "run.json").read_text())
    plain["benchmarks"][0]["extra_info"]["spread"] = 1.4
    (tmp_path / "noisy.json").write_text(json.dumps(plain))
    done = CliRunner().invoke(app, [str(tmp_path / "noisy.json")])
    assert done.exit_code == 0, done.output
    again = tmp_path / "again.json"
    case = plain["benchmarks"][0]["fullname"]
    assert f"pytest --benchmark --benchmark-json={again} '{case}'" in done.stderr
    assert plain["benchmarks"][1]["fullname"] not in done.stderr
    assert "(noisy)" in (tmp_path / "noisy" / "tables.md").read_text()


def test_the_readme_is_what_the_kept_runs_give():
    text = readme.README.read_text(encoding="utf-8")
    assert readme.replaced(text, results.kept()) == text
    readme.check_reasons(results.kept())


def test_the_readme_shows_the_newest_run_and_links_the_others(saved):
    old = dataclasses.replace(results.read(saved / "run.json"), date="2026-01-02")
    new = dataclasses.replace(old, machine={**old.machine, "device": "another device"}, date="2026-01-03")
    section = readme.section([new, old])
    assert section == readme.section([old, new])
    assert section.startswith(f"On {new.line}")
    assert section.count("| attention") == readme.section([new]).count("| attention")
    assert f"- {old.line}" in section
    assert f"bench/results/{old.name}/tables.md" in section


def test_the_readmes_section_needs_its_marks():
    with pytest.raises(ValueError, match="once each"):
        readme.replaced(f"{readme.END} {readme.BEGIN}", [])
