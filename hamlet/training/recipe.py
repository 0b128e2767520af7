"""Recipes: everything that decides what a training run does, in one YAML file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml

from hamlet.files import replacing
from hamlet.settings import from_plain, override, to_plain


def _check(condition: bool, name: str, got: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name}: got {got!r}, expected {expected}")


@dataclass(frozen=True)
class ModelRecipe:
    """The model: arguments of :func:`hamlet.create_model`; ``options`` are its overrides, such as ``acsa: false``."""

    name: str
    descriptor_dim: int = 512
    pretrained: bool | str = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = sorted(self.options.keys() & {"name", "descriptor_dim", "pretrained", "checkpoint"})
        _check(not taken, "options", taken, "overrides alone, such as acsa")


@dataclass(frozen=True)
class DataRecipe:
    """Where pictures come from and how they reach the model.

    Args:
        kind: "folder": subfolders are the classes; "landmarks": Google Landmarks v2, cleaned, as downloaded; "tars":
            a folder of WebDataset tar files (:mod:`hamlet.training.tars`).
        root: the folder.
        validation: folder of pictures held out, whose subfolders are the classes; their mAP chooses the best
            checkpoint.
        teacher: what ``hamlet teach`` made, or the file of a :class:`hamlet.training.TeacherCache`; None: there is no
            distillation.
        samples_per_class: each class in a batch comes this often, batch_size / samples_per_class classes at a time; 0:
            classes come as they are.
        aspects: widths / heights of views; each picture is seen at the nearest one to its own, and a batch holds
            pictures of one. Every view has the area of a square of ``image_size``, with sides that are multiples of 32.
        check: read all of "landmarks" or "tars" at the start, and leave out what is broken; a folder's pictures are
            always read. With a teacher, those that it could not read are left out in any case.
        workers: processes that read pictures; 0 reads them in the training process. Changes no result.
    """

    kind: Literal["folder", "landmarks", "tars"] = "folder"
    root: str | None = None
    validation: str | None = None
    teacher: str | None = None
    samples_per_class: int = 0
    aspects: tuple[float, ...] = (1.0,)
    check: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        _check(self.samples_per_class >= 0, "samples_per_class", self.samples_per_class, "0 or more")
        apart = len(set(self.aspects)) == len(self.aspects) > 0
        _check(apart and min(self.aspects) > 0, "aspects", self.aspects, "different numbers above 0")
        _check(self.workers >= 0, "workers", self.workers, "0 or more")


@dataclass(frozen=True)
class AugmentRecipe:
    """Random changes to a picture. ``scale`` and ``ratio`` bound the crop's share of the area and its width / height;
    ``perspective`` and ``color`` are strengths (0: none); ``flip``, ``gray``, ``blur`` and ``erase`` probabilities."""

    scale: tuple[float, float] = (0.4, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)
    perspective: float = 0.0
    color: float = 0.3
    flip: float = 0.5
    gray: float = 0.1
    blur: float = 0.2
    erase: float = 0.2

    def __post_init__(self) -> None:
        _check(0 < self.scale[0] <= self.scale[1] <= 1, "scale", self.scale, "0 < smallest <= largest <= 1")
        _check(0 < self.ratio[0] <= self.ratio[1], "ratio", self.ratio, "0 < smallest <= largest")
        _check(self.color >= 0, "color", self.color, "0 or more")
        for name in ("perspective", "flip", "gray", "blur", "erase"):
            _check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")


@dataclass(frozen=True)
class OptimizerRecipe:
    """The optimiser, by timm (no weight decay on biases and norms; SGD with Nesterov's momentum), and its schedule.

    Args:
        lr: the highest learning rate, after ``warmup`` steps; a cosine then takes it to ``final * lr``.
        gradient_clip: gradients are scaled down to this norm; ``.inf`` leaves them.
    """

    name: Literal["adamw", "lamb", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    warmup: int = 0
    final: float = 0.01
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        _check(self.lr > 0, "lr", self.lr, "more than 0")
        _check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        _check(0 <= self.momentum < 1, "momentum", self.momentum, "0 to less than 1")
        _check(self.warmup >= 0, "warmup", self.warmup, "0 or more")
        _check(0 <= self.final <= 1, "final", self.final, "0 to 1")
        _check(self.gradient_clip > 0, "gradient_clip", self.gradient_clip, "more than 0")


@dataclass(frozen=True)
class LossRecipe:
    """What the losses need beyond their weights.

    Args:
        classifier: see :class:`hamlet.training.classification.Classifier`.
        margin: of "arcface" and "subcenter" in degrees, of "cosface" a cosine; "madacos" finds its own.
        scale: inverse temperature; "madacos" finds its own.
        sub_centers: vectors a class, of "subcenter".
        sampled_classes: each step's softmax is over this many classes, those of the batch among them; 0: over all.
        distilled_levels: levels whose features are distilled beside the descriptor (feature level); counted as in a
            list, so -1 is the deepest.
    """

    classifier: Literal["arcface", "cosface", "subcenter", "madacos"] = "arcface"
    margin: float = 28.6
    scale: float = 64.0
    sub_centers: int = 3
    sampled_classes: int = 0
    distilled_levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.classifier == "cosface":
            _check(0 <= self.margin < 1, "margin", self.margin, "a cosine, 0 to less than 1")
        _check(0 <= self.margin < 90, "margin", self.margin, "0 to less than 90 degrees")
        _check(self.scale > 0, "scale", self.scale, "more than 0")
        _check(self.sub_centers >= 1, "sub_centers", self.sub_centers, "1 or more")
        _check(self.sampled_classes >= 0, "sampled_classes", self.sampled_classes, "0 or more")


@dataclass(frozen=True)
class CurriculumRecipe:
    """Easy samples first; see :class:`hamlet.training.Curriculum`.

    Args:
        difficulty: "loss": a running mean of each sample's classification loss; "teacher": one less the largest
            probability that the teacher gives to a prototype; "file": what ``file`` says; "none": all samples from
            the start.
        pacing: how the share of samples in use grows from ``start`` to 1.
        until: share of the training's steps after which all are in use.
        jumps: of the pacing "step".
        momentum: of the running mean.
        file: JSON lines ``{"image": "cats/1.jpg", "difficulty": 0.3}``, one for each picture; larger is harder.
    """

    difficulty: Literal["none", "loss", "teacher", "file"] = "none"
    pacing: Literal["linear", "root", "step"] = "linear"
    start: float = 0.3
    until: float = 0.5
    jumps: int = 4
    momentum: float = 0.9
    file: str | None = None

    def __post_init__(self) -> None:
        given = (self.difficulty == "file") == (self.file is not None)
        _check(given, "file", self.file, "a path with the difficulty file, and none with another")
        _check(0 < self.start <= 1, "start", self.start, "more than 0, at most 1")
        _check(0 < self.until <= 1, "until", self.until, "more than 0, at most 1")
        _check(self.jumps >= 1, "jumps", self.jumps, "1 or more")
        _check(0 <= self.momentum < 1, "momentum", self.momentum, "0 to less than 1")


@dataclass(frozen=True)
class StageRecipe:
    """A stage of training: the weights of the losses, and how the teacher is followed.

    Args:
        until: share of the training's steps at which the stage ends; the last stage's is 1.
        classification, distillation, consistency, hierarchy, coarse, budget: weights of the losses; see
            :mod:`hamlet.training.losses`.
        alpha: of MKDM: 0 follows the teacher's features, 1 its outputs.
        temperature: of MKDM, at the stage's start and at its end; it goes geometrically from one to the other.
        image_size, samples_per_class: the stage's own, in place of ``image_size`` and ``data.samples_per_class``.
    """

    until: float = 1.0
    classification: float = 1.0
    distillation: float = 0.0
    consistency: float = 0.0
    hierarchy: float = 0.0
    coarse: float = 0.0
    budget: float = 0.0
    alpha: float = 0.5
    temperature: tuple[float, float] = (1.0, 1.0)
    image_size: int | None = None
    samples_per_class: int | None = None

    def __post_init__(self) -> None:
        _check(self.image_size is None or self.image_size >= 1, "image_size", self.image_size, "1 or more")
        _check(0 < self.until <= 1, "until", self.until, "more than 0, at most 1")
        names = ("classification", "distillation", "consistency", "hierarchy", "coarse", "budget")
        weights = {name: getattr(self, name) for name in names}
        for name, weight in weights.items():
            _check(0 <= weight < float("inf"), name, weight, "a finite weight, 0 or more")
        _check(any(weights.values()), "weights", weights, "one above 0")
        _check(0 <= self.alpha <= 1, "alpha", self.alpha, "0 to 1")
        _check(min(self.temperature) > 0, "temperature", self.temperature, "two numbers above 0")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run; two runs of one recipe on one CPU give the same weights, bit for bit.

    Args:
        steps: of the optimiser.
        batch_size: samples a step, over all processes.
        image_size: height and width of a training view, in pixels.
        seed: of weights, order and views.
        precision: of the model's forward and backward (mixed precision); losses and weights are float32.
        accumulate: parts that a process's share of a batch is taken in, one after another, to save memory. The losses
            that compare the samples of a batch (hierarchy, consistency), MadaCos and batch norm see one part at a time,
            and the coarser labels' mean is over the samples of a part that have one.
        average: decay of the moving average of the weights, which is then what is validated and saved as the model; 0:
            none.
        activation_checkpointing: forget the backbone's activations and compute them again in the backward: less memory,
            more time, the same weights.
        channels_last: keep feature maps with channels innermost, which convolutions on GPUs prefer.
        compile: compile the model by torch.compile.
        validate_every: steps between validations; 0: none. Changes no result.
        checkpoint_every: steps between checkpoints. Changes no result.
    """

    steps: int
    batch_size: int
    image_size: int
    model: ModelRecipe
    seed: int = 0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    accumulate: int = 1
    average: float = 0.0
    activation_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    validate_every: int = 0
    checkpoint_every: int = 100
    data: DataRecipe = field(default_factory=DataRecipe)
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    loss: LossRecipe = field(default_factory=LossRecipe)
    curriculum: CurriculumRecipe = field(default_factory=CurriculumRecipe)
    stages: tuple[StageRecipe, ...] = (StageRecipe(),)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "image_size", "accumulate", "checkpoint_every"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("seed", "validate_every"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _check(0 <= self.average < 1, "average", self.average, "0 to less than 1")
        _check(self.optimizer.warmup < self.steps, "optimizer.warmup", self.optimizer.warmup, "fewer than steps")
        own = [(f"stages.{i}.samples_per_class", stage.samples_per_class) for i, stage in enumerate(self.stages)]
        for name, per_class in (("data.samples_per_class", self.data.samples_per_class), *own):
            divides = not per_class or (per_class > 0 and self.batch_size % per_class == 0)
            _check(divides, name, per_class, f"a divisor of batch_size, {self.batch_size}")
        ends = [stage.until for stage in self.stages]
        _check(
            bool(ends) and ends[-1] == 1 and all(a < b for a, b in pairwise(ends)),
            "stages",
            ends,
            "ends (until) that grow to 1",
        )

    def image_size_in(self, stage: StageRecipe) -> int:
        """The image size of a stage."""
        return stage.image_size or self.image_size

    def samples_per_class_in(self, stage: StageRecipe) -> int:
        """The samples per class of a stage."""
        return self.data.samples_per_class if stage.samples_per_class is None else stage.samples_per_class

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML that :func:`load_recipe` reads."""
        text = yaml.safe_dump(to_plain(self), sort_keys=False, allow_unicode=True)
        with replacing(path) as file:
            file.write(text.encode())


def list_recipes() -> list[str]:
    """Names of the recipes inside the package.

    Example:
        >>> "folder" in list_recipes()
        True
    """
    folder = resources.files("hamlet.training") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe of the package by its name, or a YAML file.

    Args:
        overrides: ``key=value`` with dotted keys and YAML values, laid over the file's: ``stages.0.alpha=0.2``.

    Raises:
        ValueError: no such recipe, not YAML, an unknown key (with the nearest known one), or a value that is refused.

    Example:
        >>> load_recipe("folder", ["optimizer.lr=0.002"]).optimizer.lr
        0.002
    """
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ValueError(f"recipe: {path} is not a file")
        text = path.read_text(encoding="utf-8")
    elif str(name_or_path) in list_recipes():
        text = (resources.files("hamlet.training") / "recipes" / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    else:
        near = difflib.get_close_matches(str(name_or_path), list_recipes(), n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        known = ", ".join(list_recipes())
        raise ValueError(f"recipe: got {str(name_or_path)!r}{hint} (known: {known}; or a file ending in .yaml)")
    try:
        plain = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"recipe: {name_or_path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(plain, dict):
        raise ValueError(f"recipe: {name_or_path} holds {type(plain).__name__}, expected keys and values")
    # Overrides may name what the file leaves at its default, such as a stage, so the defaults are filled in first.
    return from_plain(Recipe, override(to_plain(from_plain(Recipe, plain)), overrides))
