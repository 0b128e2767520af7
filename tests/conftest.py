from __future__ import annotations

import pytest
import torch

from tests import milvus_lite as lite


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Whatever ran before, a test draws the same numbers."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def milvus_lite(tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        lite.find_or_install(tmp_path_factory.mktemp("milvus-lite"))
    except lite.NoMilvusLite as reason:
        pytest.skip(str(reason))
