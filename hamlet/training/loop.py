"""The training loop: one for the CPU, a GPU, or several processes of either, by accelerate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hamlet.models import save_checkpoint
from hamlet.settings import to_plain
from hamlet.training.curriculum import Curriculum
from hamlet.training.data import TrainingSet
from hamlet.training.log import History, Log
from hamlet.training.losses import Learner, Objective, TargetTable
from hamlet.training.recipe import OptimizerRecipe, Recipe
from hamlet.training.schedule import chance, moment
from hamlet.training.state import identity, load_state, save_state
from hamlet.training.teacher import TeacherCache

PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


class DivergedError(ValueError):
    """A loss or a gradient that is not finite; the message names the step and the samples."""


def train(
    model: Any,
    recipe: Recipe,
    dataset: TrainingSet,
    *,
    out: str | Path,
    teacher: TeacherCache | None = None,
    progress: bool = True,
    stop_after: int | None = None,
) -> History:
    """Train a model in place.

    ``out`` gets recipe.yaml, history.jsonl (a line a step), tensorboard/, checkpoint.pt (the whole state) and model.pt
    (:func:`hamlet.models.load_checkpoint` reads it). Where there is a checkpoint, training goes on from it: a run that
    was killed at any moment and taken up again ends, on the CPU, with the weights of one that was not, bit for bit.
    Chance is a function of the recipe's seed and the step; the global generators are seeded at every step.

    Args:
        model: of :func:`hamlet.create_model`.
        recipe: what to do; its ``data`` is for :func:`hamlet.training.train_recipe`, except for samples_per_class and
            workers.
        dataset: see :class:`hamlet.training.data.TrainingSet`.
        out: folder, made where it is missing.
        teacher: with an embedding for each of ``dataset.ids``; where a dataset has no ids, its rows are the samples.
        progress: show a bar on stderr.
        stop_after: stop, with a checkpoint, once this many steps have been taken in all.

    Returns:
        A dict for each step from the first: "step" (from 1), "loss", "loss/NAME" for each loss before its weight, "lr",
        "gradient_norm" (before clipping), "pool" (share of the samples in use), "stage", "temperature".

    Raises:
        ValueError: a recipe that does not fit the dataset or the teacher; a checkpoint of another run.
        DivergedError: a loss or gradient that is not finite; the weights are those before it.

    Example:
        >>> import tempfile
        >>> from hamlet import create_model
        >>> from hamlet.training import load_recipe
        >>> class Noise:
        ...     labels = (0, 0, 1, 1)
        ...     def __len__(self):
        ...         return 4
        ...     def __getitem__(self, key):
        ...         return torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(key[1]))
        >>> short = ["steps=2", "batch_size=4", "image_size=64", "optimizer.warmup=1", "data.workers=0"]
        >>> model = create_model("gem_mobilenetv3_small", descriptor_dim=8)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     history = train(model, load_recipe("folder", short), Noise(), out=out, progress=False)
        >>> [record["step"] for record in history]
        [1, 2]

    Source: HAMLET architecture, §4.
    """
    if stop_after is not None and stop_after < 1:
        raise ValueError(f"stop_after: got {stop_after}, expected 1 or more")
    run = _Run(model, recipe, dataset, _aligned(teacher, dataset), Path(out))
    last = min(recipe.steps, stop_after or recipe.steps)
    writes = run.accelerator.is_main_process
    with Log(run.out, run.step, recipe.steps, writes=writes, progress=progress) as log:
        if writes:
            recipe.save(run.out / "recipe.yaml")
        while run.step < last:
            for samples, images in run.loader:
                log.append(run.train_step(samples, images))
                if run.step == last or run.step % recipe.checkpoint_every == 0:
                    log.sync()
                    run.save()
                if run.step == last:
                    break
        # The run may have been killed between its last checkpoint and the model's file.
        run.save_model()
    return log.records


class _Run:
    """A run's parts, and the steps that it takes."""

    def __init__(
        self, model: Any, recipe: Recipe, dataset: TrainingSet, teacher: TeacherCache | None, out: Path
    ) -> None:
        self.recipe, self.dataset, self.out, self.model = recipe, dataset, out, model
        self.identity = identity(model, recipe, dataset, teacher)
        self.accelerator = Accelerator(
            # Unless told so, accelerate forms no group of processes on the CPU.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=PRECISIONS[recipe.precision],
            # A stage may leave parts of the objective out, and an ablation parts of the model.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        by_teacher = recipe.curriculum.difficulty == "teacher" and teacher is not None
        difficulty = (1 - teacher.confidence()).tolist() if by_teacher and teacher is not None else None
        self.curriculum = Curriculum(dataset.labels, recipe, difficulty, process=process, processes=processes)
        set_seed(recipe.seed)
        learner = Learner(model, _objective(model, recipe, dataset, teacher)).train()
        optimizer = _optimizer(learner, recipe.optimizer)
        self.schedule = _schedule(optimizer, recipe.optimizer, recipe.steps)
        self.learner, self.optimizer = self.accelerator.prepare(learner, optimizer)
        self.targets = TargetTable(dataset, teacher, self.accelerator.device)
        self.loader = DataLoader(
            _Numbered(dataset),
            batch_sampler=self.curriculum,
            num_workers=recipe.data.workers,
            persistent_workers=recipe.data.workers > 0,
            pin_memory=self.accelerator.device.type == "cuda",
            # Its own, so that opening a loader leaves the global one alone.
            generator=torch.Generator(),
        )
        if (out / "checkpoint.pt").is_file():
            self._load(load_state(out / "checkpoint.pt", self.identity))

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.curriculum.step

    def train_step(self, samples: Tensor, images: Tensor) -> dict[str, float]:
        """One step of the optimiser; returns the history's record of it."""
        number, accelerator = self.step, self.accelerator
        now = moment(self.recipe.stages, number, self.recipe.steps)
        share = len(self.curriculum.pool) / len(self.curriculum.labels)
        # Chance in the model depends on the step alone, so no generator's state has to be kept.
        seeds = chance(self.recipe.seed, "model", number, accelerator.process_index)
        set_seed(int(seeds.generate_state(1)[0]))
        self.schedule.step_update(number)
        rate = self.optimizer.param_groups[0]["lr"]
        targets = self.targets.of(samples)
        total, terms, each = self.learner(images.to(accelerator.device), targets, now.stage, now.temperature)
        values = accelerator.reduce(torch.stack([total.detach(), *terms.values()]), "mean").tolist()
        losses = dict(zip(("loss", *(f"loss/{name}" for name in terms)), values, strict=True))
        seen, difficulties = accelerator.gather(targets.samples).tolist(), accelerator.gather(each).tolist()
        if not all(map(math.isfinite, values)):
            raise self._diverged(losses, seen, difficulties)
        self.optimizer.zero_grad()
        accelerator.backward(total)
        norm = float(accelerator.clip_grad_norm_(self.learner.parameters(), self.recipe.optimizer.gradient_clip))
        # With float16 such steps are expected: accelerate's scaler passes over them.
        if not math.isfinite(norm) and self.recipe.precision != "float16":
            raise self._diverged({"gradient_norm": norm}, seen, difficulties)
        self.optimizer.step()
        self.curriculum.observe(seen, difficulties)
        how = {"lr": rate, "gradient_norm": norm, "pool": share, "stage": now.index, "temperature": now.temperature}
        return {"step": self.step, **losses, **how}

    def save(self) -> None:
        """Write checkpoint.pt and model.pt."""
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "learner": self.accelerator.unwrap_model(self.learner).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "curriculum": self.curriculum.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        save_state(self.out / "checkpoint.pt", self.identity, state)
        self.save_model()

    def save_model(self) -> None:
        """Write model.pt alone."""
        if self.accelerator.is_main_process:
            save_checkpoint(self.out / "model.pt", self.model, recipe=to_plain(self.recipe), step=self.step)

    def _load(self, state: dict[str, Any]) -> None:
        self.accelerator.unwrap_model(self.learner).load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.curriculum.load_state_dict(state["curriculum"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _diverged(self, values: dict[str, float], seen: Sequence[int], losses: Sequence[float]) -> DivergedError:
        guilty = [sample for sample, loss in zip(seen, losses, strict=True) if not math.isfinite(loss)]
        ids = getattr(self.dataset, "ids", None)
        names = [f"{sample} ({ids[sample]})" if ids else str(sample) for sample in sorted(set(guilty or seen))]
        told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        where = "with samples" if guilty else "in the batch of samples"
        return DivergedError(
            f"training diverged at step {self.step + 1}: {told}, {where} {', '.join(names)}; "
            "lower optimizer.lr or loss.scale, or look at these samples"
        )


class _Numbered(Dataset[tuple[int, Tensor]]):
    """A training set whose views come with their sample's number."""

    def __init__(self, dataset: TrainingSet) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Tensor]:
        return key[0], self.dataset[key]


def _aligned(teacher: TeacherCache | None, dataset: TrainingSet) -> TeacherCache | None:
    if teacher is None:
        return None
    ids: Sequence[str] | None = getattr(dataset, "ids", None)
    if ids is not None:
        return teacher.aligned(ids)
    if len(teacher.ids) != len(dataset):
        raise ValueError(f"teacher: got {len(teacher.ids)} embeddings, expected {len(dataset)}, one for each sample")
    return teacher


def _objective(model: Any, recipe: Recipe, dataset: TrainingSet, teacher: TeacherCache | None) -> Objective:
    hierarchy: Sequence[Sequence[int]] = getattr(dataset, "hierarchy", ())
    level_dims: list[int] = []
    if recipe.loss.distilled_levels:
        device = next(model.parameters()).device
        with torch.no_grad():
            blank = torch.zeros(1, 3, recipe.image_size, recipe.image_size, device=device)
            level_dims = [level.shape[1] for level in model.eval()(blank, return_maps=True)[1].level_embeddings]
    return Objective(
        recipe.loss,
        recipe.stages,
        descriptor_dim=model.descriptor_dim,
        level_dims=level_dims,
        classes=max(dataset.labels) + 1,
        coarse_classes=[max(level) + 1 for level in hierarchy],
        teacher=teacher,
    )


def _optimizer(learner: Learner, recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    return create_optimizer_v2(
        learner, opt=recipe.name, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
    )


def _schedule(optimizer: torch.optim.Optimizer, recipe: OptimizerRecipe, steps: int) -> CosineLRScheduler:
    """A linear warm-up from lr / (warmup + 1), then a cosine; a function of the step alone."""
    return CosineLRScheduler(
        optimizer,
        t_initial=steps - recipe.warmup,
        lr_min=recipe.final * recipe.lr,
        warmup_t=recipe.warmup,
        warmup_lr_init=recipe.lr / (recipe.warmup + 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )
