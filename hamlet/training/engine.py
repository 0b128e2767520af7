"""A training run's parts and steps: on the CPU, a GPU, or several processes of either, by accelerate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hamlet.files import write_json
from hamlet.models import save_checkpoint
from hamlet.settings import to_plain
from hamlet.training.curriculum import Curriculum
from hamlet.training.data import TrainingSet
from hamlet.training.losses import Learner, Objective, Targets, TargetTable
from hamlet.training.optimization import (
    checkpoint_activations,
    make_optimizer,
    make_schedule,
    statistics_of,
    still_statistics,
)
from hamlet.training.recipe import Recipe
from hamlet.training.schedule import Moment, chance, moment
from hamlet.training.state import identity, load_state, save_state
from hamlet.training.teacher import TeacherCache, read_difficulty
from hamlet.training.termination import outlive_sigterm
from hamlet.training.timing import StepTimer

PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
Validate = Callable[[nn.Module], float]


class DivergedError(ValueError):
    """A loss or a gradient that is not finite; the message names the step and the samples."""


class Engine:
    """Model, objective, optimiser, curriculum and loader of a run, at the step where its checkpoint left them."""

    def __init__(
        self, model: Any, recipe: Recipe, dataset: TrainingSet, teacher: TeacherCache | None, out: Path
    ) -> None:
        self.recipe, self.dataset, self.out, self.model = recipe, dataset, out, model
        # Accelerate keeps one precision a process, but a process may train twice.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            # Unless told so, accelerate forms no group of processes on the CPU.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=PRECISIONS[recipe.precision],
            # A stage may leave parts of the objective out, and an ablation parts of the model.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        device = self.accelerator.device
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        # Dropout, and on the CPU batch norm, differ with the number of processes.
        self.identity = {**identity(model, recipe, dataset, teacher), "processes": processes}
        self.curriculum = Curriculum(
            dataset.labels,
            recipe,
            _difficulty(recipe, dataset, teacher),
            shapes=getattr(dataset, "shapes", None),
            process=process,
            processes=processes,
        )
        if recipe.batch_size // processes % recipe.accumulate:
            share = recipe.batch_size // processes
            raise ValueError(f"accumulate: got {recipe.accumulate}, expected a divisor of a process's {share} samples")
        set_seed(recipe.seed)
        learner = Learner(model, _objective(model, recipe, dataset, teacher)).train()
        if recipe.activation_checkpointing:
            checkpoint_activations(model)
        if processes > 1 and device.type == "cuda":
            learner = convert_sync_batchnorm(learner)
        if recipe.channels_last:
            learner.to(memory_format=torch.channels_last)
        optimizer = make_optimizer(learner, recipe.optimizer)
        self.schedule = make_schedule(optimizer, recipe.optimizer, recipe.steps)
        self.average = ModelEmaV3(model.to(device), decay=recipe.average) if recipe.average else None
        if recipe.compile:
            model.compile()
        self.learner, self.optimizer = self.accelerator.prepare(learner, optimizer)
        self.statistics = statistics_of(self.learner)
        self.targets = TargetTable(dataset, teacher, device, recipe.loss.sampled_classes, recipe.seed)
        self.timer = StepTimer(device)
        self.timer.watch(self.learner)
        self.loader = DataLoader(
            _Numbered(dataset),
            batch_sampler=self.curriculum,
            num_workers=recipe.data.workers,
            persistent_workers=recipe.data.workers > 0,
            worker_init_fn=outlive_sigterm if recipe.data.workers else None,
            pin_memory=device.type == "cuda",
            # Its own, so that opening a loader leaves the global one alone.
            generator=torch.Generator(),
        )
        self.best: dict[str, Any] = {}
        self.validated = 0
        self.ending = False
        if (out / "checkpoint.pt").is_file():
            self._load(load_state(out / "checkpoint.pt", self.identity))

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.curriculum.step

    @property
    def described_by(self) -> nn.Module:
        """What a run is for: the model, or the average of its weights."""
        averaged: nn.Module | None = self.average.module if self.average is not None else None
        return self.model if averaged is None else averaged

    def train_step(self, samples: Tensor, images: Tensor, ending: bool = False) -> dict[str, float]:
        """One step of the optimiser; returns the history's record of it.

        ``ending`` tells that this process was asked to end; afterwards ``self.ending`` tells whether any was.
        """
        number, accelerator, timer = self.step, self.accelerator, self.timer
        now = moment(self.recipe.stages, number, self.recipe.steps)
        share = len(self.curriculum.pool) / len(self.curriculum.labels)
        # Chance in the model depends on the step alone, so no generator's state has to be kept.
        seeds = chance(self.recipe.seed, "model", number, accelerator.process_index)
        set_seed(int(seeds.generate_state(1)[0]))
        self.schedule.step_update(number)
        rate = self.optimizer.param_groups[0]["lr"]
        with timer.part("data"):
            targets = self.targets.of(samples, number)
            images = images.to(accelerator.device, non_blocking=True)
            if self.recipe.channels_last:
                images = images.to(memory_format=torch.channels_last)
        self.optimizer.zero_grad()
        before = [buffer.clone() for buffer in self.statistics]
        losses, each = self._backward(images, targets, now)
        with timer.part("communication"):
            told = torch.stack([*losses.values(), losses["loss"].new_tensor(float(ending))])
            *values, asked = accelerator.reduce(told, "mean").tolist()
            seen, difficulties = accelerator.gather(targets.samples).tolist(), accelerator.gather(each).tolist()
        losses = dict(zip(losses, values, strict=True))
        if not all(map(math.isfinite, values)):
            raise self._diverged(losses, seen, difficulties, images, before)
        with timer.part("optimizer"):
            clip = self.recipe.optimizer.gradient_clip
            norm = float(accelerator.clip_grad_norm_(self.learner.parameters(), clip))
            # With float16 such steps are expected: accelerate's scaler passes over them.
            if not math.isfinite(norm) and self.recipe.precision != "float16":
                raise self._diverged({"gradient_norm": norm}, seen, difficulties, images, before)
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.model)
        drawn = self.curriculum.drawn(seen)
        self.curriculum.observe(seen, difficulties)
        self.ending = asked > 0
        how = {"lr": rate, "gradient_norm": norm, "pool": share, "stage": now.index, "temperature": now.temperature}
        how |= {"image_size": self.recipe.image_size_in(now.stage)}
        if self.recipe.curriculum.difficulty != "none":
            how |= {f"drawn/{tenth}": count for tenth, count in enumerate(drawn, start=1)}
        return {"step": self.step, **losses, **how}

    def _backward(self, images: Tensor, targets: Targets, now: Moment) -> tuple[dict[str, Any], Tensor]:
        """Gradients of a batch, part by part; the losses by name, and each sample's."""
        count = self.recipe.accumulate
        found: list[Tensor] = []
        each: list[Tensor] = []
        names: list[str] = []
        for place, (part, its) in enumerate(zip(images.chunk(count), targets.parts(count), strict=True), start=1):
            last = place == count
            with nullcontext() if last else self.accelerator.no_sync(self.learner):
                with self.timer.part("forward"):
                    total, terms, losses = self.learner(part, its, now.stage, now.temperature)
                with self.timer.part("backward"):
                    again = self.recipe.activation_checkpointing
                    with still_statistics(self.learner) if again else nullcontext():
                        self.accelerator.backward(total / count)
            names = ["loss", *(f"loss/{name}" for name in terms)]
            found.append(torch.stack([total.detach(), *terms.values()]))
            each.append(losses)
        return dict(zip(names, torch.stack(found).mean(0), strict=True)), torch.cat(each)

    def is_due(self) -> bool:
        """Whether the recipe wants a validation at this step, and it has not been made."""
        every, step = self.recipe.validate_every, self.step
        return every > 0 and (step % every == 0 or step == self.recipe.steps) and self.validated != step

    def validate(self, validate: Validate) -> float:
        """The mAP of the model as it is; best.pt is written where it is the best so far."""
        self.share_statistics()
        found = validate(self.described_by)
        if not math.isfinite(found):
            raise ValueError(f"validate: got {found} after step {self.step}, expected a finite mAP")
        of = getattr(validate, "digest", None)
        if self.best and self.best["of"] != of:
            warnings.warn("data.validation holds other pictures than before, so best.pt begins anew", stacklevel=2)
            self.best = {}
        self.validated = self.step
        if found > self.best.get("map", -math.inf):
            self.best = {"map": found, "step": self.step, "of": of}
            self._save_model("best.pt", map=found)
        return found

    def share_statistics(self) -> None:
        """Give all processes the first's statistics of batch norm, which are saved; on the CPU each has its own."""
        if self.accelerator.num_processes > 1:
            for buffer in self.described_by.buffers():
                torch.distributed.broadcast(buffer, 0)

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
            "average": self.average.module.state_dict() if self.average is not None else None,
            "best": self.best,
            "validated": self.validated,
        }
        save_state(self.out / "checkpoint.pt", self.identity, state)
        self.save_model()

    def save_model(self) -> None:
        """Write model.pt alone."""
        self._save_model("model.pt")

    def _save_model(self, name: str, **extra: float) -> None:
        if self.accelerator.is_main_process:
            model: Any = self.described_by
            save_checkpoint(self.out / name, model, recipe=to_plain(self.recipe), step=self.step, **extra)

    def _load(self, state: dict[str, Any]) -> None:
        self.accelerator.unwrap_model(self.learner).load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.curriculum.load_state_dict(state["curriculum"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        self.best, self.validated = state["best"], state["validated"]

    def _diverged(
        self, values: dict[str, float], seen: list[int], losses: list[float], images: Tensor, before: list[Tensor]
    ) -> DivergedError:
        for buffer, kept in zip(self.statistics, before, strict=True):
            buffer.copy_(kept)
        # Batch norm spreads one sample's NaN over the batch: a view that is not finite tells more than the losses.
        views = self.accelerator.gather(images.isfinite().flatten(1).all(1)).tolist()
        guilty = [sample for sample, finite in zip(seen, views, strict=True) if not finite]
        guilty = guilty or [sample for sample, loss in zip(seen, losses, strict=True) if not math.isfinite(loss)]
        if len(set(guilty)) == len(set(seen)):
            guilty = []
        ids = getattr(self.dataset, "ids", None)
        names = {sample: ids[sample] if ids else str(sample) for sample in sorted(set(seen))}
        if self.accelerator.is_main_process:
            batch = [{"sample": s, "id": names[s], "loss": repr(x)} for s, x in zip(seen, losses, strict=True)]
            told = {"step": self.step + 1, **{name: repr(value) for name, value in values.items()}, "batch": batch}
            write_json(self.out / "diverged.json", told)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        where = "with samples" if guilty else "in the batch of samples"
        which = [f"{sample} ({names[sample]})" if ids else names[sample] for sample in sorted(set(guilty or seen))]
        few = ", ".join(which[:8]) + (f" and {len(which) - 8} more" if len(which) > 8 else "")
        return DivergedError(
            f"training diverged at step {self.step + 1}: {shown}, {where} {few}; the batch is in "
            f"{self.out / 'diverged.json'}; lower optimizer.lr or loss.scale, or look at these samples"
        )


class _Numbered(Dataset[tuple[int, Tensor]]):
    """A training set whose views come with their sample's number."""

    def __init__(self, dataset: TrainingSet) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[int, Tensor]:
        return key[0], self.dataset[key]


def _difficulty(recipe: Recipe, dataset: TrainingSet, teacher: TeacherCache | None) -> Sequence[float] | None:
    if recipe.curriculum.difficulty == "teacher" and teacher is not None:
        return (1 - teacher.confidence()).tolist()
    if recipe.curriculum.file is not None:
        ids: Sequence[str] | None = getattr(dataset, "ids", None)
        if ids is None:
            raise ValueError("curriculum.file: the training set's samples have no names, so none can be looked up")
        return read_difficulty(recipe.curriculum.file, ids)
    return None


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
