from __future__ import annotations

import html
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from hamlet.cli import app
from hamlet.cli.output import finite
from hamlet.files import printable
from hamlet.models import create_model, load_checkpoint, save_checkpoint
from hamlet.retrieval import Index

COMMANDS = (
    *("demo", "teach", "train", "ablate", "compare"),
    *("index", "search", "whiten", "evaluate", "profile", "info"),
)


def hamlet(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", "from hamlet.cli import main; main()", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False, **options)


def assert_one_line_error(result: Result, *words: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("hamlet: error: ")]
    assert len(lines) == 1
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_checkpoint(path, create_model("gem_resnet18", descriptor_dim=32))
    return path


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of plain colours and stripes, one of them in a subfolder, and one file that is no picture."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "more").mkdir()
    for number, colour in enumerate(["red", "green", "blue", "white", "black"]):
        Image.new("RGB", (80 + 8 * number, 64), colour).save(folder / f"{colour}.png")
    stripes = Image.new("L", (64, 64))
    stripes.putdata([255 * (x // 8 % 2) for _ in range(64) for x in range(64)])
    stripes.save(folder / "more" / "stripes.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def indexed(checkpoint: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("index") / "photographs.index"
    result = hamlet("index", checkpoint, photographs, "--out", out, "--longest-side", 96)
    assert result.exit_code == 0, result.output
    assert "6 images, 1 left out" in result.stdout
    assert "broken.jpg" in result.stderr
    return out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = hamlet(name, "--help")
    assert result.exit_code == 0
    assert f"hamlet {name}" in result.stdout.split("Example")[-1]


def test_help_lists_the_commands() -> None:
    result = hamlet("--help")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in COMMANDS)


def test_help_does_not_import_torch() -> None:
    code = "import sys; from hamlet.cli import app; sys.exit('torch' in sys.modules or 'faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_number_that_json_does_not_know_is_null() -> None:
    assert finite({"a": [float("nan"), 0.5, float("-inf")], "b": (1, "x", None, True)}) == {
        "a": [None, 0.5, None],
        "b": [1, "x", None, True],
    }


def test_evaluating_what_has_no_answer_prints_null(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("warm", "cold"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), "red").save(tmp_path / name / "0.png")
        (tmp_path / name / "1.png").write_bytes(b"no picture")
    result = hamlet("evaluate", "folder", "--data", tmp_path, "--model", checkpoint, "--longest-side", 64, "--json")
    assert "NaN" not in result.stdout
    if result.exit_code == 0:
        json.loads(result.stdout)


def test_names_are_no_markup(checkpoint: Path, tmp_path: Path) -> None:
    names = {"photo [copy].png", "x:cat:.png", "y[/b].png", "[red]z.png", os.fsdecode(b"caf\xe9.png")}
    (tmp_path / "y[").mkdir()
    for name in names:
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)
    out = tmp_path / "a.index"
    assert hamlet("index", checkpoint, tmp_path, "--out", out, "--longest-side", 64).exit_code == 0
    done = command("search", out, tmp_path / "y[/b].png", "--html", tmp_path / "found.html")
    assert done.returncode == 0, done.stderr
    page = html.unescape((tmp_path / "found.html").read_text())
    for name in names:
        assert printable(name) in done.stdout
        assert printable(name) in page


def test_train_by_a_recipe_goes_on_and_names_what_it_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("warm", "cold"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (64, 64 + 8 * number), "red").save(tmp_path / "photos" / name / f"{number}.png")
    (tmp_path / "photos" / "warm" / "broken.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    settings = ("data.root=photos", "model.name=gem_mobilenetv3_small", "steps=2", "batch_size=4", "image_size=64")
    arguments = ("train", "folder", *settings, "optimizer.warmup=1", "data.workers=0", "checkpoint_every=1")
    result = hamlet(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == "runs/folder/model.pt: gem_mobilenetv3_small after 2 steps\n"
    assert "warm/broken.png" in result.stderr
    history = Path("runs/folder/history.jsonl").read_text()
    assert len(history.splitlines()) == 2
    assert hamlet(*arguments).exit_code == 0
    assert Path("runs/folder/history.jsonl").read_text() == history
    assert_one_line_error(hamlet(*arguments, "seed=5"), "seed=0 (now 5)")


def test_version() -> None:
    from importlib.metadata import version

    assert hamlet("--version").stdout.strip() == f"hamlet {version('hamlet')}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["index", "model.pt"],
        ["search", "a.index", "b.jpg", "--top", "0"],
        ["demo", "--steps", "x"],
        ["index", "a.pt", "b"],
        ["index", "a.pt", "b", "--out", "c", "--store", "d"],
    ],
)
def test_usage_errors_leave_with_2(arguments: list[str]) -> None:
    result = hamlet(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_index_remembers_what_made_it(indexed: Path, checkpoint: Path, photographs: Path) -> None:
    index = Index.load(indexed)
    assert sorted(index.ids) == ["black.png", "blue.png", "green.png", "more/stripes.png", "red.png", "white.png"]
    assert index.metadata["checkpoint"] == str(checkpoint)
    assert index.metadata["root"] == str(photographs)
    assert index.metadata["longest_side"] == 96
    assert not indexed.with_name("photographs.index.extraction").exists()


def test_search_finds_the_query_itself_first(indexed: Path, photographs: Path) -> None:
    queries = [photographs / "red.png", photographs / "more" / "stripes.png"]
    result = hamlet("search", indexed, *queries, "--top", 3, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert [query["query"] for query in answer["queries"]] == [str(query) for query in queries]
    for query in answer["queries"]:
        assert [len(query["results"]), query["results"][0]["path"]] == [3, query["query"]]
        scores = [found["score"] for found in query["results"]]
        assert scores[0] == pytest.approx(1, abs=1e-4)
        assert scores == sorted(scores, reverse=True)
    assert answer["failures"] == []


def test_search_prints_a_table_and_writes_a_page(indexed: Path, photographs: Path, tmp_path: Path) -> None:
    result = hamlet("search", indexed, photographs / "blue.png", "--top", 2, "--html", tmp_path / "page.html")
    assert result.exit_code == 0
    assert "1.0000" in result.stdout
    assert "blue.png" in result.stdout
    page = (tmp_path / "page.html").read_text()
    # The query, the map of what GeM pools, and two results.
    assert page.count("data:image/jpeg;base64,") == 4
    assert page.count("<figcaption>pooling</figcaption>") == 1
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_search_tells_of_the_queries_that_it_could_not_read(indexed: Path, photographs: Path) -> None:
    result = hamlet("search", indexed, photographs / "broken.jpg", photographs / "red.png", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert [query["query"] for query in answer["queries"]] == [str(photographs / "red.png")]
    assert answer["failures"][0][0] == str(photographs / "broken.jpg")
    assert "broken.jpg" in result.stderr
    assert_one_line_error(hamlet("search", indexed, photographs / "broken.jpg"), "none can be read")


def test_search_says_when_the_checkpoint_is_gone_or_changed(photographs: Path, tmp_path: Path) -> None:
    checkpoint, out = tmp_path / "model.pt", tmp_path / "a.index"
    save_checkpoint(checkpoint, create_model("gem_resnet18", descriptor_dim=16))
    assert hamlet("index", checkpoint, photographs, "--out", out, "--longest-side", 64).exit_code == 0
    moved = checkpoint.rename(tmp_path / "elsewhere.pt")
    assert_one_line_error(hamlet("search", out, photographs / "red.png"), "model.pt", "gone", "hamlet index")
    torch.manual_seed(1)
    save_checkpoint(checkpoint, create_model("gem_resnet18", descriptor_dim=16))
    assert_one_line_error(hamlet("search", out, photographs / "red.png"), "not the weights", "hamlet index")
    moved.replace(checkpoint)
    assert hamlet("search", out, photographs / "red.png").exit_code == 0


def test_search_finds_the_checkpoint_beside_a_moved_index(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    save_checkpoint(tmp_path / "old" / "model.pt", create_model("gem_resnet18", descriptor_dim=16))
    out = tmp_path / "old" / "a.index"
    assert (
        hamlet("index", tmp_path / "old" / "model.pt", photographs, "--out", out, "--longest-side", 64).exit_code == 0
    )
    (tmp_path / "old").rename(tmp_path / "new")
    assert hamlet("search", tmp_path / "new" / "a.index", photographs / "red.png").exit_code == 0


def test_a_models_name_means_random_weights_and_says_so(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "random.index"
    result = hamlet("index", "gem_resnet18", photographs, "--out", out, "--longest-side", 64)
    assert result.exit_code == 0, result.output
    assert "random" in result.stderr
    assert "random" not in result.stdout.replace(str(out), "")
    model, _ = load_checkpoint(tmp_path / "random.index.model.pt")
    assert model.name == "gem_resnet18"
    found = json.loads(hamlet("search", out, photographs / "green.png", "--top", 1, "--json").stdout)
    assert found["queries"][0]["results"][0]["id"] == "green.png"


def test_errors_are_one_line_with_the_mend(indexed: Path, checkpoint: Path, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.index"
    assert_one_line_error(hamlet("index", "no_such_model", photographs, "--out", out), "no_such_model")
    assert_one_line_error(
        hamlet("index", tmp_path / "gone.pt", photographs, "--out", out), "gone.pt", "no such checkpoint"
    )
    assert_one_line_error(hamlet("index", photographs / "broken.jpg", photographs, "--out", out), "broken.jpg")
    assert_one_line_error(hamlet("index", checkpoint, tmp_path / "nowhere", "--out", out), "nowhere")
    assert_one_line_error(hamlet("search", indexed, tmp_path / "gone.jpg"), "gone.jpg", "no such file")
    assert_one_line_error(hamlet("search", checkpoint, photographs / "red.png"), "not an index")
    assert_one_line_error(hamlet("evaluate", "roxford5k", "--data", tmp_path, "--model", checkpoint), "gnd_roxford5k")
    assert_one_line_error(hamlet("evaluate", "oxford", "--data", tmp_path, "--model", checkpoint), "roxford5k")
    assert_one_line_error(hamlet("train", "no-such-recipe"), "no-such-recipe")
    folder = ("train", "folder", f"data.root={photographs}")
    assert_one_line_error(hamlet(*folder, "model.options.heads=abc"), "heads: got 'abc', expected int")
    assert_one_line_error(hamlet(*folder, "model.options.descriptor_dim=3"), "model.options: got ['descriptor_dim']")
    assert not out.exists()


def test_a_factory_that_cannot_be_trained_keeps_what_was_extracted(
    checkpoint: Path, photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.index"
    arguments = ("index", checkpoint, photographs, "--out", out, "--factory")
    assert_one_line_error(hamlet(*arguments, "IVF99,Flat"), "IVF99,Flat")
    assert (tmp_path / "a.index.extraction").is_dir()
    assert hamlet("index", checkpoint, photographs, "--out", out).exit_code == 0
    assert not (tmp_path / "a.index.extraction").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--out", "a.index", "--factory", "Flatt"), ("Flatt", "faiss says")),
        (("--out", "a.index", "--factory", "PQ5"), ("PQ5", "multiple")),
        (("--store", "milvus://a.db", "--factory", "PQ8"), ("PQ8", "in Milvus")),
        pytest.param(
            ("--store", "milvus://127.0.0.1:9/photos"),
            ("http://127.0.0.1:9/photos: Milvus says: ",),
            marks=pytest.mark.skipif(importlib.util.find_spec("pymilvus") is None, reason="no pymilvus"),
        ),
        (("--out", "."), ("a folder, expected the file to write",)),
        (("--out", "file/a.index"), ("file is a file, expected a folder",)),
    ],
)
def test_what_index_refuses_before_any_work(
    checkpoint: Path,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert_one_line_error(hamlet("index", checkpoint, photographs, *flags), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_index_checks_itself_against_exact_search(checkpoint: Path, photographs: Path, tmp_path: Path) -> None:
    arguments = ("index", checkpoint, photographs, "--out", tmp_path / "a.index", "--longest-side", 64, "--check")
    result = hamlet(*arguments, "--factory", "IVF1,Flat")
    assert result.exit_code == 0, result.output
    for word in ("recall@1", "queries/s", "IVF1,Flat", "exact search", "1.0000"):
        assert word in result.stdout
    assert_one_line_error(hamlet(*arguments, "--update"), "check", "update")


def test_index_is_brought_up_to_date(checkpoint: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "photographs", tmp_path / "a.index"
    folder.mkdir()
    for colour in ("red", "green"):
        Image.new("RGB", (64, 64), colour).save(folder / f"{colour}.png")
    arguments = ("index", checkpoint, folder, "--out", out, "--longest-side", 64)
    assert_one_line_error(hamlet(*arguments, "--update"), "a.index", "No such file")
    assert hamlet(*arguments).exit_code == 0
    (folder / "red.png").rename(folder / "renamed.png")
    result = hamlet(*arguments, "--update")
    assert result.stdout == f"{out}: 2 images, 1 added, 1 removed, 0 left out\n"
    assert sorted(Index.load(out).ids) == ["green.png", "renamed.png"]
    found = hamlet("search", out, folder / "renamed.png", "--mmap", "--json")
    assert json.loads(found.stdout)["queries"][0]["results"][0]["id"] == "renamed.png"


@pytest.mark.usefixtures("milvus_lite")
def test_index_kept_in_milvus(checkpoint: Path, photographs: Path, tmp_path: Path) -> None:
    store = f"milvus://{tmp_path}/photographs.db"
    result = hamlet("index", checkpoint, photographs, "--store", store, "--longest-side", 64)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{store}: 6 images, 1 left out\n"
    found = json.loads(hamlet("search", store, photographs / "red.png", "--top", 2, "--json").stdout)
    assert found["index"] == store
    assert [found["queries"][0]["results"][0]["id"], len(found["queries"][0]["results"])] == ["red.png", 2]
    assert_one_line_error(hamlet("search", f"milvus://{tmp_path}/gone.db", photographs / "red.png"), "no such folder")
    assert_one_line_error(hamlet("search", store, photographs / "red.png", "--mmap"), "memory_map")


def test_a_store_is_an_address(checkpoint: Path, photographs: Path, tmp_path: Path) -> None:
    arguments = ("index", checkpoint, photographs, "--longest-side", 64, "--store")
    assert_one_line_error(hamlet(*arguments, tmp_path / "a.index"), "a.index", "expected milvus://")
    assert not list(tmp_path.iterdir())


def test_evaluate_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    for name, colour in (("warm", "red"), ("cold", "blue")):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (64, 64 + 8 * number), colour).save(tmp_path / name / f"{number}.png")
    arguments = ("evaluate", "folder", "--data", tmp_path, "--model", checkpoint, "--longest-side", 64)
    result = hamlet(*arguments, "--json")
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert measured["queries"] == 4
    assert measured["metrics"]["all"]["map"] == 1.0
    assert measured["cost"]["parameters"] == sum(p.numel() for p in load_checkpoint(checkpoint)[0].parameters())
    assert "100.00" in hamlet(*arguments).stdout


def test_profile_tells_the_cost_of_each_part(checkpoint: Path) -> None:
    result = hamlet("profile", checkpoint, "hamlet_mobilenetv3_small", "--size", 64, "--json")
    assert result.exit_code == 0, result.output
    gem, small = json.loads(result.stdout)
    assert [gem["model"], small["model"]] == [str(checkpoint), "hamlet_mobilenetv3_small"]
    assert [part["name"] for part in gem["parts"]] == ["hfe", "whiten"]
    assert [part["name"] for part in small["parts"]] == ["hfe", "lateral", "acsa", "cecm", "hffn", "grgm"]
    for each in (gem, small):
        for measure in ("parameters", "flops"):
            # GeM's power belongs to no part; neither model multiplies matrices between its parts.
            apart = measure == "parameters" and each is gem
            assert sum(part[measure] for part in each["parts"]) == each["cost"][measure] - apart
        assert max(part["peak_memory_bytes"] for part in each["parts"]) <= each["cost"]["peak_memory_bytes"]
    table = hamlet("profile", "hamlet_mobilenetv3_small", "--size", 64).stdout
    assert f"{small['cost']['parameters']:,}" in table
    assert "acsa" in table


def test_profile_sets_models_side_by_side() -> None:
    names = ("gem_mobilenetv3_small", "hamlet_mobilenetv3_small")
    gem, small = json.loads(hamlet("profile", *names, "--size", 64, "--json").stdout)
    table = hamlet("profile", *names, "--size", 64).stdout
    parameters = rf"whole +parameters +{gem['cost']['parameters']:,} +{small['cost']['parameters']:,} *$"
    descriptor = rf"descriptor bytes +{gem['cost']['descriptor_bytes']} +{small['cost']['descriptor_bytes']} *$"
    acsa = next(part["parameters"] for part in small["parts"] if part["name"] == "acsa")
    for row in (parameters, descriptor, rf"acsa +parameters +{acsa:,} *$"):
        assert re.search(row, table, re.MULTILINE), table


def test_info_says_why_a_backend_cannot_serve() -> None:
    result = hamlet("info", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"hamlet_resnet18", "gem_resnet18"} <= set(found["models"])
    assert set(found["operators"]) == {"cross_scale_attention", "pyramid_attention", "dynamic_conv2d"}
    for devices in found["operators"].values():
        assert devices["cpu"]["reference"] == []
        assert devices["cpu"]["cuda"] != []
    shown = hamlet("info").stdout
    assert "can serve" in shown
    assert "pyramid_attention" in shown


def test_the_command_itself_keeps_stdout_pure(indexed: Path, photographs: Path) -> None:
    done = command("search", indexed, photographs / "red.png", photographs / "broken.jpg", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["queries"][0]["results"][0]["id"] == "red.png"
    assert "broken.jpg" in done.stderr


def test_the_command_itself_fails_without_a_traceback(tmp_path: Path) -> None:
    done = command("search", tmp_path / "gone.index", __file__)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("hamlet: error: ")
    assert command("search").returncode == 2


def test_ctrl_c_leaves_with_130(tmp_path: Path) -> None:
    # A shell's background jobs begin with Ctrl-C ignored, and so does what they start: not what is tested here.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from hamlet.cli import main; main()"
    )
    line = [sys.executable, "-c", code, "demo", "--steps", "9999", "--out", str(tmp_path)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            deadline = time.monotonic() + 60
            while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
                time.sleep(0.2)
            running.send_signal(signal.SIGINT)
            _, errors = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
