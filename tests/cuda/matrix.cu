// The matrix units' built-ins by themselves, on one warp: every lane's operands in, every lane's results out.
#include "binding.h"
#include "cuda/matrix.h"

namespace hamlet::cuda {

struct Fragments {
    Global<uint32_t> left, right;  // (lanes, registers)
    Global<float> sums;
    bool diverges = false;
};

template <class T>
HAMLET_KERNEL(WARP)
product(HAMLET_PARAMETERS Fragments p) {
    const int lane = thread_index();
    uint32_t left[4], right[2];
    float sums[4];
    for (int i = 0; i < 4; ++i) left[i] = p.left.load(lane * 4 + i), sums[i] = p.sums.load(lane * 4 + i);
    for (int i = 0; i < 2; ++i) right[i] = p.right.load(lane * 2 + i);
    if (!p.diverges || lane != 5) mma<T>(sums, left, right);
    for (int i = 0; i < 4; ++i) p.sums.store(lane * 4 + i, sums[i]);
}

struct Matrices {
    Global<Float16> rows;          // 32 of 8 elements
    Global<uint32_t> found;        // (lanes, matrices)
};

template <bool TRANSPOSED>
HAMLET_KERNEL(WARP)
matrices(HAMLET_PARAMETERS Matrices p) {
    const int lane = thread_index();
    const Shared<Float16> memory = shared_memory().as<Float16>(0);
    for (int i = 0; i < 8; ++i) memory.store(lane * 8 + i, p.rows.load(lane * 8 + i));
    synchronise_warp();
    uint32_t found[4];
    load_matrices<TRANSPOSED>(found, memory, lane * 8);
    for (int i = 0; i < 4; ++i) p.found.store(lane * 4 + i, found[i]);
}

}  // namespace hamlet::cuda

PYBIND11_MODULE(cuda_matrix, module) {
    using namespace hamlet;
    module.def("product", [](py::handle left, py::handle right, py::handle sums, int dtype, bool diverges) {
        const cuda::Call call(0, 0);
        const cuda::Fragments p{cuda::global<uint32_t>(view_of(left)), cuda::global<uint32_t>(view_of(right)),
                                cuda::global<float>(view_of(sums)), diverges};
        cuda::with_type(DType(dtype), [&](auto zero) {
            call.launch("product", cuda::product<decltype(zero)>, 1, cuda::WARP, 0, p);
        });
    });
    module.def("load_matrices", [](py::handle rows, py::handle found, bool transposed) {
        const cuda::Call call(0, 0);
        const cuda::Matrices p{cuda::global<cuda::Float16>(view_of(rows)), cuda::global<uint32_t>(view_of(found))};
        call.launch("matrices", transposed ? cuda::matrices<true> : cuda::matrices<false>, 1, cuda::WARP, 512, p);
    });
    module.def("tf32", &cuda::tf32);
}
