"""faiss on the GPUs that there are."""

from __future__ import annotations

import logging
from typing import Any

import faiss
import torch

LARGEST_K = 2048
"""How many neighbours faiss finds for a query on a GPU at most."""

_log = logging.getLogger(__name__)


def on_gpus(index: Any, *, shard: bool) -> Any:
    """A copy of a faiss index on all GPUs; the index itself where there are none, or where they do not take it.

    They do not take graphs (HNSW) and some codes, nor what is larger than their memory: the log says so.

    Args:
        index: a faiss index on the CPU.
        shard: give each GPU a part of the rows, rather than all of them and a part of the queries.
    """
    if faiss.get_num_gpus() == 0:
        if torch.cuda.is_available():
            _log.warning("faiss sees no GPU, PyTorch does: faiss-cpu may have been installed over faiss-gpu")
        return index
    options = faiss.GpuMultipleClonerOptions()
    options.shard = shard
    try:
        return faiss.index_cpu_to_all_gpus(index, co=options)
    except RuntimeError as error:
        _log.warning("the index stays on the CPU: %s", " ".join(str(error).split())[:300])
        return index
