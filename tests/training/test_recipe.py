"""Recipes: those of the package, the user's, and the mistakes made in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hamlet.settings import from_plain, override
from hamlet.training import Recipe, list_recipes, load_recipe

SHORT = "steps: 5\nbatch_size: 4\nimage_size: 32\nmodel: {name: gem_resnet18}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SHORT)
    return path


def test_recipes_of_the_package_are_whole() -> None:
    assert {"folder", "demo"} <= set(list_recipes())
    for name in list_recipes():
        assert isinstance(load_recipe(name), Recipe)


def test_saved_recipe_is_the_same(tmp_path: Path) -> None:
    for name in list_recipes():
        recipe = load_recipe(name, ["stages.0.temperature=[3, 1]", "model.options={heads: 2}"])
        recipe.save(tmp_path / f"{name}.yaml")
        assert load_recipe(tmp_path / f"{name}.yaml") == recipe


def test_overrides(file: Path) -> None:
    overrides = [
        "steps=9",
        "optimizer.lr=1e-4",
        "model.options.acsa=false",
        "data.root=some folder",
        "stages=[{until: 0.5, alpha: 0}, {}]",
        "stages.1.temperature=[2, 1]",
        "optimizer.gradient_clip=.inf",
    ]
    recipe = load_recipe(file, overrides)
    assert recipe.steps == 9
    assert recipe.optimizer.lr == 1e-4
    assert recipe.model.options == {"acsa": False}
    assert recipe.data.root == "some folder"
    assert [stage.until for stage in recipe.stages] == [0.5, 1.0]
    assert recipe.stages[1].temperature == (2.0, 1.0)
    assert recipe.optimizer.gradient_clip == float("inf")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("stesp=5", r"stesp: unknown key, did you mean steps\?"),
        ("optimizer.learning_rate=1", r"optimizer\.learning_rate: unknown key \(known: name, lr, "),
        ("optimiser.lr=1", r"optimiser: unknown key, did you mean optimizer\?"),
        ("stages.0.alfa=1", r"stages\.0\.alfa: unknown key, did you mean stages\.0\.alpha\?"),
        ("steps=many", "steps: got 'many', expected int"),
        ("steps=2.5", r"steps: got 2\.5, expected int"),
        ("steps=true", "steps: got True, expected int"),
        ("optimizer.lr=true", r"optimizer\.lr: got True, expected float"),
        ("optimizer.lr=fast", r"optimizer\.lr: got 'fast', expected float"),
        ("optimizer.lr=-1", r"optimizer\.lr: got -1\.0, expected more than 0"),
        ("optimizer.lr=.nan", r"optimizer\.lr: got nan, expected more than 0"),
        ("optimizer.name=adma", r"optimizer\.name: got 'adma', expected one of adamw, lamb, sgd"),
        ("optimizer.warmup=5", r"optimizer\.warmup: got 5, expected fewer than steps"),
        ("optimizer=3", "optimizer: got 3, expected keys and values"),
        ("optimizer.lr.x=3", r"optimizer\.lr\.x: optimizer\.lr is 0\.001, which has no x"),
        ("steps.x=3", r"steps\.x: steps is 5, which has no x"),
        ("model.pretrained=3", r"model\.pretrained: got 3, expected bool or str"),
        ("data.samples_per_class=3", r"data\.samples_per_class: got 3, expected a divisor of batch_size, 4"),
        ("augment.scale=[0.5]", r"augment\.scale: got \[0\.5\], expected tuple"),
        ("augment.scale=[0.5, wide]", r"augment\.scale\.1: got 'wide', expected float"),
        ("augment.flip=2", r"augment\.flip: got 2\.0, expected 0 to 1"),
        ("stages=[{classification: 0}]", r"stages\.0\.weights: got .*, expected one above 0"),
        ("stages=[]", "stages: got"),
        ("stages=[{until: 0.9}]", "stages: got"),
        ("stages=[{until: 0.9}, {until: 0.5}, {}]", "stages: got"),
        ("stages=[{}]\n", None),
        ("curriculum.start=0", r"curriculum\.start: got 0\.0, expected more than 0"),
        ("precision=half", "precision: got 'half', expected one of float32, bfloat16, float16"),
        ("steps", "overrides: got 'steps', expected key=value"),
        ("steps=[1", r"steps: '\[1' is not YAML"),
    ],
)
def test_mistakes_are_named(file: Path, assignment: str, message: str | None) -> None:
    if message is None:
        assert load_recipe(file, [assignment]) == load_recipe(file)
        return
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(file, [assignment])
    assert "\n" not in str(caught.value)


def test_index_beyond_the_stages() -> None:
    with pytest.raises(ValueError, match=r"stages\.7: got index '7', expected 0 to 1"):
        load_recipe("folder", ["stages.7.alpha=0"])


def test_missing_keys_and_wrong_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("batch_size: 4\nimage_size: 32\nmodel: {name: gem_resnet18}\n")
    with pytest.raises(ValueError, match="steps: missing, expected int"):
        load_recipe(path)
    path.write_text("steps: [1\n")
    with pytest.raises(ValueError, match="is not YAML"):
        load_recipe(path)
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="holds list, expected keys and values"):
        load_recipe(path)
    with pytest.raises(ValueError, match="is not a file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match=r"got 'foldr', did you mean folder\?"):
        load_recipe("foldr")


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("steps: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ValueError, match="is not YAML"):
        load_recipe(path)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.text(max_size=30))
def test_any_override_is_taken_or_refused_with_a_message(text: str) -> None:
    plain = {"steps": 5, "batch_size": 4, "image_size": 32, "model": {"name": "gem_resnet18"}}
    message = "none"
    try:
        from_plain(Recipe, override(plain, [text]))
    except ValueError as error:
        message = str(error)
    assert message
