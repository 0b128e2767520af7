#include "attention_forward.h"

#include <algorithm>

#include "attention_launch.h"

namespace hamlet::cuda {

void attention_forward(const Attention& given) {
    const Call call(given.device, given.stream);
    with_variant(given, [&](auto zero, auto channels, auto tf32) {
        using T = decltype(zero);
        constexpr int D = channels;
        launch_attention<T>(call, "attention forward", attention_forward<T, D, tf32>, given.query,
                            AttentionPlan<sizeof(T), D, Pass::forward>::SHARED_BYTES, cross_scale_of<T>(given));
    });
}

namespace {

template <int D>
int most_shared_bytes(int item_bytes) {
    auto most = [](auto bytes) {
        return std::max(AttentionPlan<bytes, D, Pass::queries>::SHARED_BYTES,
                        AttentionPlan<bytes, D, Pass::keys>::SHARED_BYTES);
    };
    return item_bytes == 4 ? most(std::integral_constant<int, 4>()) : most(std::integral_constant<int, 2>());
}

}  // namespace

int attention_shared_bytes(int item_bytes, int channels) {
    switch (channels) {
        case 16: return most_shared_bytes<16>(item_bytes);
        case 32: return most_shared_bytes<32>(item_bytes);
        case 64: return most_shared_bytes<64>(item_bytes);
        case 128: return most_shared_bytes<128>(item_bytes);
        default: return 0;
    }
}

}  // namespace hamlet::cuda
