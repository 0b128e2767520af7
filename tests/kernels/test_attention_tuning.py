from __future__ import annotations

import triton

from hamlet.kernels.attention_backward import attention_backward_keys
from hamlet.kernels.attention_forward import attention_forward
from hamlet.kernels.attention_table import FINE, block, configuration
from hamlet.kernels.attention_tuning import KEY, candidates, launch_options, tuned


def test_the_table_has_a_shape_for_every_size():
    for kernel in ("forward", "queries", "keys"):
        for itemsize in (2, 4):
            for channels in (0, 1, 16, 17, 100, 256):
                even, fine = (configuration(kernel, itemsize, channels, ratio) for ratio in (1, 2 * FINE))
                assert fine.tile_y * fine.tile_x <= even.tile_y * even.tile_x <= 64
                assert even.step >= 16
    assert [block(channels) for channels in (0, 1, 16, 17, 100)] == [16, 16, 16, 32, 128]


def test_tuning_keeps_the_tile_and_begins_with_the_table():
    shape = configuration("forward", 2, 64, 1)
    found = candidates(shape)
    assert found[0] == shape
    assert len(set(found)) == len(found) > 5
    assert {(own.tile_y, own.tile_x) for own in found} == {(shape.tile_y, shape.tile_x)}


def test_a_tuned_kernel_tries_them_all_and_keeps_the_result():
    shape = configuration("keys", 2, 64, 1)
    tuner = tuned(attention_backward_keys, shape)
    assert tuner is tuned(attention_backward_keys, shape)
    assert [config.kwargs for config in tuner.configs] == [{"QUERIES": own.step} for own in candidates(shape)]
    assert [config.num_warps for config in tuner.configs] == [own.warps for own in candidates(shape)]
    assert tuner.cache_results
    assert isinstance(tuner, triton.runtime.Autotuner)


def test_tuning_tells_apart_what_the_kernels_take():
    assert set(KEY) <= set(attention_forward.arg_names)
    assert launch_options(attention_forward, configuration("forward", 2, 32, 1)) == {
        "KEYS": 32, "num_warps": 4, "num_stages": 2,
    }  # fmt: skip
