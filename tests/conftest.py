from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests import milvus_lite as lite


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Whatever ran before, a test draws the same numbers."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def quick_cost() -> Iterator[None]:
    """How long a pass takes is measured for no longer than it must be: to no test does it matter how steadily."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hamlet.retrieval.cost._SECONDS", 0.0)
        yield


@pytest.fixture(scope="session")
def milvus_lite(tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        lite.find_or_install(tmp_path_factory.mktemp("milvus-lite"))
    except lite.NoMilvusLite as reason:
        pytest.skip(str(reason))
