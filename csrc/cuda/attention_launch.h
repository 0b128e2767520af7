// An attention as its kernels take it.
#pragma once

#include <limits>

#include "attention.h"
#include "kernels.h"

namespace hamlet::cuda {

// Strides of all but the channels, that of a dimension of size 1 being whatever it is: it is never used.
template <class T>
Grid<T> grid_of(const View& view) {
    return {global<T>(view), view.stride[0], view.stride[1], view.stride[2], view.stride[3]};
}

inline bool is_aligned(std::initializer_list<const View*> grids) {
    for (const View* grid : grids) {
        if (!*grid) continue;
        if (reinterpret_cast<uintptr_t>(grid->data) % COPY_BYTES) return false;
        for (int i = 0; i < 4; ++i)
            if (grid->size[i] > 1 && grid->stride[i] * element_size(grid->dtype) % COPY_BYTES) return false;
    }
    return true;
}

template <class T>
CrossScale<T> cross_scale_of(const Attention& given) {
    CrossScale<T> p;
    p.query = grid_of<T>(given.query), p.key = grid_of<T>(given.key), p.value = grid_of<T>(given.value);
    p.out = grid_of<T>(given.out);
    p.d_query = grid_of<T>(given.d_query), p.d_key = grid_of<T>(given.d_key), p.d_value = grid_of<T>(given.d_value);
    p.radius = grid_of<float>(given.radius), p.gate = grid_of<float>(given.gate);
    p.query_extent = global<int64_t>(given.query_extent), p.key_extent = global<int64_t>(given.key_extent);
    p.lse = global<float>(given.lse), p.grad_lse = global<float>(given.grad_lse);
    p.d_radius = global<float>(given.d_radius), p.d_gate = global<float>(given.d_gate);
    p.summaries = global<float>(given.summaries), p.largest = global<float>(given.largest);
    p.max_radius = given.max_radius, p.softness = given.softness, p.scale = given.scale;
    p.query_height = int(given.query.size[1]), p.query_width = int(given.query.size[2]);
    p.key_height = int(given.key.size[1]), p.key_width = int(given.key.size[2]);
    p.heads = int(given.query.size[3]);
    p.aligned = is_aligned({&given.query, &given.key, &given.value, &given.out});
    return p;
}

// Calls run(T(), channels, tf32), the last two being constants of their types.
template <class Run>
void with_variant(const Attention& given, const Run& run) {
    auto with_arithmetic = [&](auto channels) {
        with_type(given.query.dtype, [&](auto zero) {
            if constexpr (sizeof(zero) == 4)
                if (given.tf32) return run(zero, channels, std::true_type());
            run(zero, channels, std::false_type());
        });
    };
    switch (given.query.size[4]) {
        case 16: return with_arithmetic(std::integral_constant<int, 16>());
        case 32: return with_arithmetic(std::integral_constant<int, 32>());
        case 64: return with_arithmetic(std::integral_constant<int, 64>());
        case 128: return with_arithmetic(std::integral_constant<int, 128>());
        default: throw std::runtime_error("attention: no kernel has so many channels");
    }
}

// Starts a block for every head of every tile of `grid`.
template <class T>
void launch_attention(const Call& call, const char* name, void (*kernel)(const CrossScale<T>), const View& grid,
                      int shared_bytes, const CrossScale<T>& p) {
    const int64_t blocks = ceiling(grid.size[1], TILE) * ceiling(grid.size[2], TILE) * grid.size[0] * grid.size[3];
    if (blocks > std::numeric_limits<int>::max()) throw std::runtime_error(std::string(name) + ": too many tiles");
    if (blocks) call.launch(name, kernel, blocks, ATTENTION_THREADS, shared_bytes, p);
}

}  // namespace hamlet::cuda
