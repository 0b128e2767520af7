#include "attention_keys.h"

#include "attention_launch.h"

namespace hamlet::cuda {

void attention_backward_keys(const Attention& given) {
    const Call call(given.device, given.stream);
    with_variant(given, [&](auto zero, auto channels, auto tf32) {
        using T = decltype(zero);
        constexpr int D = channels;
        launch_attention<T>(call, "attention backward by keys", attention_keys<T, D, tf32>, given.key,
                            AttentionPlan<sizeof(T), D, Pass::keys>::SHARED_BYTES, cross_scale_of<T>(given));
    });
}

}  // namespace hamlet::cuda
