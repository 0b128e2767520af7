// Two small kernels, right with fault 0, and broken in one way with each other: what the checker must see, or the
// result must show. A block of the first smooths a tile of a signal with its halo, doubled over two stages, then sums
// it across the block. The second smooths an image's columns; the bulk copy engine stages three rows at a time.
#include "binding.h"
#include "cuda/bulk.h"
#include "cuda/number.h"

namespace hamlet::cuda {

enum Fault {
    NONE,
    NO_BARRIER_AFTER_STAGING,
    NO_BARRIER_BEFORE_RESTAGING,
    HALO_ONE_SHORT,
    HALO_ONE_LONG,
    WAITS_FOR_THE_OTHER_STAGE,
    READS_THE_OTHER_STAGE,
    NEVER_WAITS,
    BARRIER_IN_A_BRANCH,
    SHUFFLE_IN_A_BRANCH,
    NO_WARP_BARRIER,
    TWO_THREADS_WRITE_ONE_RESULT,
    WRITES_PAST_THE_RESULT,
    READS_PAST_THE_INPUT,
    MISALIGNED_COPY,
    BLOCKS_SHARE_A_RESULT,
};

enum BoxFault {
    NO_FAULT_OF_BOXES,
    BOX_NOT_WAITED_FOR,
    BOX_WAITED_FOR_BY_ONE_THREAD,
    BOX_OF_THE_OTHER_STAGE,
    BOX_NEVER_COPIED,
    NO_BARRIER_AFTER_INITIALISING,
    NO_BARRIER_BEFORE_THE_NEXT_BOX,
    NEXT_BOX_ON_A_BUSY_BARRIER,
    TOO_FEW_BYTES_EXPECTED,
    BOX_MISPLACED,
    BOX_PAST_SHARED_MEMORY,
    BOX_LEFT_UNDER_WAY,
    NO_FENCE_BEFORE_THE_NEXT_BOX,
    STAGE_CLEARED_WITHOUT_A_FENCE,
    BARRIER_WRITTEN_OVER,
    INITIALISED_TWICE,
    REFUSED_BY_THE_DRIVER,
};

struct Signal {
    Global<float> input, output, sums;
    int count = 0;
};

constexpr int THREADS = 64, HALO = 4, STAGED = THREADS + 2 * HALO;

template <int FAULT>
struct Smoothing {
    const Signal& p;
    int thread = thread_index();
    Shared<float> memory = shared_memory().as<float>(0);

    Shared<float> stage(int turn) const { return memory + turn % 2 * STAGED; }

    void copy(int tile) const {
        const int slots = STAGED / COPIED<float> - (FAULT == HALO_ONE_SHORT);
        if (thread < slots + (FAULT == HALO_ONE_LONG && tile % 2)) {
            const int from = tile * THREADS - HALO + thread * COPIED<float>;
            const bool exists = from >= 0 && (FAULT == READS_PAST_THE_INPUT || from < p.count);
            copy_async(stage(tile), thread * COPIED<float> + (FAULT == MISALIGNED_COPY && thread == 3), p.input,
                from, exists);
        }
        commit_copies();
    }

    void smooth(int tile) {
        const Shared<float> from = stage(tile + (FAULT == READS_THE_OTHER_STAGE));
        float sum = 0;
        for (int i = -HALO; i <= HALO; ++i) sum += from.load(thread + HALO + i);
        const int at = tile * THREADS + thread;
        if (at < p.count + (FAULT == WRITES_PAST_THE_RESULT))
            p.output.store(FAULT == TWO_THREADS_WRITE_ONE_RESULT ? at / 2 * 2 : at, sum);
        if (FAULT == BARRIER_IN_A_BRANCH && thread < 40) synchronise();
        float of_warp = at < p.count ? sum : 0;
        if (FAULT != SHUFFLE_IN_A_BRANCH || thread != 5)
            for (int lanes = WARP / 2; lanes; lanes /= 2) of_warp += shuffle_xor(of_warp, lanes);
        const Shared<float> sums = memory + 2 * STAGED;
        sums.store(thread, of_warp);
        if (FAULT != NO_WARP_BARRIER) synchronise_warp();
        const float neighbour = sums.load(thread ^ 1);
        if (thread % WARP == 0) p.sums.store(FAULT == BLOCKS_SHARE_A_RESULT ? 0 : tile * 2 + thread / WARP, neighbour);
    }

    void run() {
        const int tiles = (p.count + THREADS - 1) / THREADS, first = block_index() * 2;
        copy(first);
        for (int tile = first; tile < min(tiles, first + 2); ++tile) {
            if (tile == first) copy(tile + 1);
            else commit_copies();
            if (FAULT != NEVER_WAITS) wait_for_copies<FAULT == WAITS_FOR_THE_OTHER_STAGE ? 2 : 1>();
            if (FAULT != NO_BARRIER_AFTER_STAGING) synchronise();
            smooth(tile);
            if (FAULT != NO_BARRIER_BEFORE_RESTAGING) synchronise();
            if (tile == first) stage(tile).store(thread, 0);
        }
        wait_for_copies<0>();
    }
};

template <int FAULT>
HAMLET_KERNEL(THREADS)
smoothing(HAMLET_PARAMETERS Signal p) {
    Smoothing<FAULT>{p}.run();
}

template <int FAULT>
void smooth(const View& input, const View& output, const View& sums) {
    const Call call(0, 0);
    const int64_t blocks = ceiling(input.size[0], 2 * THREADS);
    const Signal p{global<float>(input), global<float>(output), global<float>(sums), int(input.size[0])};
    call.launch("smoothing", smoothing<FAULT>, blocks, THREADS, (2 * STAGED + THREADS) * 4, p);
}

struct Columns {
    TensorMap boxes;
    Global<float> output;
    int rows = 0;
};

constexpr int STAGE = 3 * THREADS, STAGE_BYTES = STAGE * 4, BARRIERS = 2 * STAGE_BYTES;

template <int FAULT>
struct SmoothingOfColumns {
    const Columns& p;
    int thread = thread_index();

    Shared<float> stage(int row) const { return shared_memory().as<float>(row % 2 * STAGE_BYTES); }
    CopyBarrier barrier(int row) const { return shared_memory().as<uint64_t>(BARRIERS) + row % 2; }

    void copy(int row) const {
        if (thread != 0 || (FAULT == BOX_NEVER_COPIED && row == 2)) return;
        const int corner[RANK] = {0, row - 1, 0, 0, 0};
        const int shifted = FAULT == BOX_MISPLACED ? 4 : FAULT == BOX_PAST_SHARED_MEMORY ? 4 * STAGE : 0;
        const CopyBarrier counted = barrier(FAULT == NEXT_BOX_ON_A_BUSY_BARRIER ? 0 : row);
        copy_box(stage(row) + shifted, p.boxes, corner, counted, STAGE_BYTES - 16 * (FAULT == TOO_FEW_BYTES_EXPECTED));
    }

    void run() {
        if (thread == 0)
            for (int i = 0; i < 2; ++i) initialise(barrier(FAULT == INITIALISED_TWICE ? 0 : i));
        if (FAULT == STAGE_CLEARED_WITHOUT_A_FENCE) stage(0).store(thread, 0);
        if (FAULT == BARRIER_WRITTEN_OVER && thread == 0) barrier(1).store(0, 0);
        if (FAULT != NO_BARRIER_AFTER_INITIALISING) synchronise();
        copy(0);
        for (int row = 0; row < p.rows; ++row) {
            if (row + 1 < p.rows + (FAULT == BOX_LEFT_UNDER_WAY)) copy(row + 1);
            if (FAULT != BOX_NOT_WAITED_FOR && (FAULT != BOX_WAITED_FOR_BY_ONE_THREAD || thread == 0))
                wait_for_box(barrier(row), row / 2);
            const Shared<float> from = stage(row + (FAULT == BOX_OF_THE_OTHER_STAGE));
            float sum = 0;
            for (int i = 0; i < 3; ++i) sum += from.load(i * THREADS + thread);
            p.output.store(row * THREADS + thread, sum);
            if (FAULT != NO_FENCE_BEFORE_THE_NEXT_BOX) leave_to_engine();
            if (FAULT != NO_BARRIER_BEFORE_THE_NEXT_BOX) synchronise();
        }
    }
};

template <int FAULT>
HAMLET_KERNEL(THREADS)
smoothing_of_columns(HAMLET_PARAMETERS Columns p) {
    SmoothingOfColumns<FAULT>{p}.run();
}

template <int FAULT>
void smooth_columns(const View& input, const View& output, const View&) {
    const Call call(0, 0);
    const int64_t rows = input.size[0], all = rows * THREADS;
    const Boxes boxes{{THREADS, rows, 1, 1, 1}, {1, THREADS, all, all, all}, {THREADS, 3, 1, 1, 1},
                      {1, FAULT == REFUSED_BY_THE_DRIVER ? 9 : 1, 1, 1, 1}};
    const Columns p{tensor_map(global<float>(input), boxes), global<float>(output), int(rows)};
    call.launch("smoothing", smoothing_of_columns<FAULT>, 1, THREADS, BARRIERS + 16, p);
}

using Smooth = void (*)(const View&, const View&, const View&);

template <int... FAULTS>
constexpr Smooth choose(int fault, std::integer_sequence<int, FAULTS...>) {
    constexpr Smooth all[] = {smooth<FAULTS>...};
    return all[fault];
}

template <int... FAULTS>
constexpr Smooth choose_of_columns(int fault, std::integer_sequence<int, FAULTS...>) {
    constexpr Smooth all[] = {smooth_columns<FAULTS>...};
    return all[fault];
}

}  // namespace hamlet::cuda

PYBIND11_MODULE(cuda_faults, module) {
    using namespace hamlet;
    module.def("smooth", [](int fault, py::handle input, py::handle output, py::handle sums) {
        using namespace hamlet::cuda;
        choose(fault, std::make_integer_sequence<int, BLOCKS_SHARE_A_RESULT + 1>())(view_of(input), view_of(output),
            view_of(sums));
    });
    module.def("smooth_columns", [](int fault, py::handle input, py::handle output) {
        using namespace hamlet::cuda;
        choose_of_columns(fault, std::make_integer_sequence<int, REFUSED_BY_THE_DRIVER + 1>())(view_of(input),
            view_of(output), View());
    });
}
