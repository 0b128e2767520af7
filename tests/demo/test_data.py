from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch

from hamlet.demo.data import TEST_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, Views, instances, photograph
from hamlet.training.recipe import AugmentRecipe

AUGMENT = AugmentRecipe(perspective=0.3, flip=0.0, gray=0.0, erase=0.5)
ALL = [*TRAIN_PHOTOGRAPHS, *TEST_PHOTOGRAPHS]


def test_photographs_are_the_ones_in_the_wheel_and_none_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a photograph was fetched")

    monkeypatch.setattr("skimage.data._fetchers._fetch", refuse)
    photograph.cache_clear()
    for name in ALL:
        pixels = photograph(name)
        assert pixels.dtype == torch.uint8
        assert pixels.shape[0] == 3
        assert min(pixels.shape[1:]) > 150
    assert len(set(ALL)) == 18


def test_photographs_hold_the_files_pixels() -> None:
    stored = skimage.io.imread(Path(skimage.__file__).parent / "data" / "coffee.png")
    assert np.array_equal(photograph("coffee").permute(1, 2, 0).numpy(), stored)
    grey = skimage.io.imread(Path(skimage.__file__).parent / "data" / "camera.png")
    assert np.array_equal(photograph("camera").numpy(), np.stack([grey, grey, grey]))


def test_missing_photograph_says_what_to_do() -> None:
    with pytest.raises(FileNotFoundError, match="no photograph 'unicorn'"):
        photograph("unicorn")


def test_training_and_test_share_no_photograph() -> None:
    assert not set(TRAIN_PHOTOGRAPHS) & set(TEST_PHOTOGRAPHS)
    # The two halves of a stereo pair show the same thing.
    assert "motorcycle_right" not in ALL


def test_instances_of_one_photograph_share_no_pixel_and_keep_their_place() -> None:
    for name in ALL:
        found = instances([name])
        assert len(found) >= 5
        covered = np.zeros(photograph(name).shape[1:], dtype=int)
        for instance in found:
            left, top, right, bottom = instance.box
            assert right - left == bottom - top >= 84
            covered[top:bottom, left:right] += 1
            assert torch.equal(instance.pixels, photograph(name)[:, top:bottom, left:right])
        assert covered.max() == 1
        assert covered.sum() == sum((i.box[2] - i.box[0]) ** 2 for i in found)


def test_names_of_instances_differ() -> None:
    names = [instance.name for instance in instances(ALL)]
    assert len(names) == len(set(names)) > 400


def test_flat_squares_are_left_out() -> None:
    assert len(instances(["moon"])) < 36
    assert all(instance.pixels.float().mean(0).std() >= 6 for instance in instances(["moon", "retina"]))


def test_views_are_a_function_of_the_seed_alone() -> None:
    crops = instances(["coffee"])
    first = Views(crops, AUGMENT, 48)
    torch.manual_seed(1)
    one, other = first[3, 17, 48], first[3, 18, 48]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    # Another order, another global state, another object: the same views, and the global state untouched.
    second = Views(crops, AUGMENT, 48)
    assert torch.equal(second[3, 18, 48], other)
    assert torch.equal(second[3, 17, 48], one)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one, other)
    assert torch.equal(first[3, 17, 48], one)


def test_views_are_pictures_of_their_size() -> None:
    views = Views(instances(["page"]), AUGMENT, 40)
    for index, seed in itertools.product(range(3), range(5)):
        view = views[index, seed, 40]
        assert view.shape == (3, 40, 40)
        assert view.dtype == torch.float32
        assert 0 <= view.min() < view.max() <= 1


def test_labels_and_hierarchy() -> None:
    crops = instances(["coffee", "page"])
    views = Views(crops, AUGMENT, 32)
    assert views.labels == list(range(len(crops)))
    assert views.ids == [crop.name for crop in crops]
    assert [len(set(level)) for level in views.hierarchy] == [2]
    assert all(
        (views.hierarchy[0][i] == views.hierarchy[0][j]) == (crops[i].photograph == crops[j].photograph)
        for i, j in itertools.product(range(len(crops)), repeat=2)
    )


def test_no_instances_are_refused() -> None:
    with pytest.raises(ValueError, match="instances: got none"):
        Views([], AUGMENT, 32)
