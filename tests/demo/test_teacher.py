from __future__ import annotations

import pytest
import torch

from hamlet.demo.data import Instance, instances
from hamlet.demo.teacher import make_teacher, prototypes, teacher_embeddings


def test_embeddings_are_unit_vectors_and_reproducible() -> None:
    crops = instances(["coffee", "grass"])
    one, other = teacher_embeddings(crops, 24), teacher_embeddings(crops, 24)
    assert one.shape == (len(crops), 24)
    assert one.dtype == torch.float32
    assert torch.allclose(one.norm(dim=1), torch.ones(len(crops)))
    assert torch.equal(one, other)


def test_embeddings_know_photographs_apart() -> None:
    crops = instances(["coffee", "grass", "text"])
    embeddings = teacher_embeddings(crops, 16)
    similarity = embeddings @ embeddings.T
    names = [crop.photograph for crop in crops]
    same = torch.tensor([[a == b for a in names] for b in names])
    assert similarity[same].mean() > similarity[~same].mean() + 0.3


def test_embeddings_see_gradients_patterns_and_colours() -> None:
    crops = instances(["coffee"])
    crop = next(crop for crop in crops if crop.name == "coffee-300-100")
    turned = Instance("turned", crop.box, crop.pixels.rot90(1, (1, 2)))
    recoloured = Instance("recoloured", crop.box, crop.pixels.flip(0))
    shuffled = crop.pixels.flatten(1)[:, torch.randperm(100 * 100, generator=torch.Generator().manual_seed(0))]
    rough = Instance("rough", crop.box, shuffled.view(3, 100, 100))
    same = Instance("same", crop.box, crop.pixels)
    embeddings = teacher_embeddings([*crops, turned, recoloured, rough, same], 26)
    original, *changed, copy = embeddings[[crops.index(crop), -4, -3, -2, -1]]
    assert original @ copy > 0.9999
    assert all(original @ other < 0.8 for other in changed)


def test_a_crops_caption_tells_of_its_photograph_and_of_itself() -> None:
    crops = instances(["coffee", "grass", "text"])
    teacher = make_teacher(crops)
    assert teacher.captions is not None
    assert teacher.prototypes is not None
    likeness = teacher.captions @ teacher.embeddings.T
    photographs = [["coffee", "grass", "text"].index(crop.photograph) for crop in crops]
    assert (teacher.captions @ teacher.prototypes.T).argmax(1).tolist() == photographs
    for row, photograph in enumerate(photographs):
        same = torch.tensor(photographs) == photograph
        assert likeness[row, row] > likeness[row, same].mean()


def test_dimension_beyond_the_crops_is_refused() -> None:
    with pytest.raises(ValueError, match="dimension: got 24, expected 1 to 23"):
        teacher_embeddings(instances(["coffee"]), 24)


def test_prototypes_are_mean_directions() -> None:
    embeddings = torch.tensor([[0.6, 0.8], [0.6, -0.8], [0.0, 1.0]])
    assert torch.allclose(prototypes(embeddings, [1, 1, 0]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
