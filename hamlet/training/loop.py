"""The training loop."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hamlet.training.data import TrainingSet
from hamlet.training.engine import Engine, Validate
from hamlet.training.log import History, Log, read_records
from hamlet.training.plots import plot_run
from hamlet.training.recipe import Recipe
from hamlet.training.teacher import TeacherCache
from hamlet.training.termination import Terminated, Termination


def train(
    model: Any,
    recipe: Recipe,
    dataset: TrainingSet,
    *,
    out: str | Path,
    teacher: TeacherCache | None = None,
    validate: Validate | None = None,
    progress: bool = True,
    stop_after: int | None = None,
) -> History:
    """Train a model in place.

    ``out`` gets recipe.yaml, history.jsonl and timing.jsonl (a line a step), tensorboard/, training.png, checkpoint.pt
    (the whole state), model.pt (:func:`hamlet.models.load_checkpoint` reads it) and, with ``validate``, best.pt. Where
    there is a checkpoint, training goes on from it: a run that was killed at any moment and taken up again ends, on the
    CPU, with the weights of one that was not, bit for bit. Chance is a function of the recipe's seed and the step; the
    global generators are seeded at every step.

    Under ``torchrun`` or ``accelerate launch``, each process takes its part of every batch, and gradients are those of
    the whole batch. Two things are each process's own: dropout, and on the CPU batch norm's statistics, which on GPUs
    are shared.

    Args:
        model: of :func:`hamlet.create_model`.
        recipe: what to do; its ``data`` is for :func:`hamlet.training.train_recipe`, except for samples_per_class and
            workers.
        dataset: see :class:`hamlet.training.data.TrainingSet`.
        out: folder, made where it is missing.
        teacher: with an embedding for each of ``dataset.ids``; where a dataset has no ids, its rows are the samples.
        validate: model -> mAP, such as :class:`hamlet.training.validation.FolderValidation`; called in every process,
            each ``recipe.validate_every`` steps and at the end. It may not draw from the global generators what
            training would not.
        progress: show a bar on stderr.
        stop_after: stop, with a checkpoint, once this many steps have been taken in all.

    Returns:
        In the first process a dict for each step from the first, in the others none. Its keys: "step" (from 1), "loss",
        "loss/NAME" for each loss that the stage weighs, before its weight, "lr", "gradient_norm" (before clipping),
        "pool" (share of the samples in use), "stage", "temperature", "image_size", "drawn/1" to "drawn/10" (samples of
        each tenth of the ranking by difficulty, where there is one), and "validation/map" after the steps that were
        validated.

    Raises:
        ValueError: a recipe that does not fit the dataset or the teacher; a checkpoint of another run.
        DivergedError: a loss or gradient that is not finite; the weights are those before it, and diverged.json names
            the batch.
        Terminated: SIGTERM came; the step was finished and saved.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from hamlet import create_model
        >>> from hamlet.training import load_recipe
        >>> class Noise:
        ...     labels = (0, 0, 1, 1)
        ...     def __len__(self):
        ...         return 4
        ...     def __getitem__(self, key):
        ...         sample, seed, size = key
        ...         return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))
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
    engine = Engine(model, recipe, dataset, aligned(teacher, dataset), Path(out))
    last = min(recipe.steps, stop_after or recipe.steps)
    writes = engine.accelerator.is_main_process
    with (
        Log(engine.out, engine.step, recipe.steps, writes=writes, progress=progress) as log,
        Termination() as termination,
    ):
        if writes:
            recipe.save(engine.out / "recipe.yaml")

        def score_if_due() -> None:
            # A step's state is saved before it is validated, which may take longer than a batch system waits. So a
            # run may go on at a step that is not validated yet.
            if validate is not None and engine.step and engine.is_due():
                log.amend(**{"validation/map": engine.validate(validate)})
                log.sync()
                engine.save()

        score_if_due()
        while engine.step < last and not engine.ending:
            for samples, images in engine.timer.waited_for(engine.loader):
                record = engine.train_step(samples, images, termination.asked)
                seconds = engine.timer.take()
                ends = engine.step == last or engine.ending
                log.append(record, seconds)
                due = validate is not None and engine.is_due()
                if ends or due or engine.step % recipe.checkpoint_every == 0:
                    log.sync()
                    engine.save()
                if not engine.ending:
                    score_if_due()
                if ends:
                    break
        # The run may have been killed between its last checkpoint and the model's file.
        engine.save_model()
    if writes:
        _plot(engine.out)
    if engine.ending and (engine.step < last or (validate is not None and engine.is_due())):
        raise Terminated(engine.step)
    engine.share_statistics()
    if engine.average is not None:
        model.load_state_dict(engine.described_by.state_dict())
    return read_records(engine.out / "history.jsonl") if writes else []


def aligned(teacher: TeacherCache | None, dataset: TrainingSet) -> TeacherCache | None:
    """The teacher's rows in the order of a training set's samples."""
    if teacher is None:
        return None
    ids: Sequence[str] | None = getattr(dataset, "ids", None)
    if ids is not None:
        return teacher.aligned(ids)
    if len(teacher.ids) != len(dataset):
        raise ValueError(f"teacher: got {len(teacher.ids)} embeddings, expected {len(dataset)}, one for each sample")
    return teacher


def _plot(out: Path) -> None:
    try:
        plot_run(out)
    except Exception as error:  # whatever a picture fails of, the run is done
        warnings.warn(f"{out / 'training.png'} cannot be drawn ({type(error).__name__}: {error})", stacklevel=3)
