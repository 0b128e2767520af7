// Images correlated with filters: the forward, and the gradient of the input. That is half of what the backward would have to
// compile, so it is compiled with the forward alone: `HAMLET_CORRELATIONS()` there, `HAMLET_CORRELATIONS(extern)` elsewhere.
// None of these may be `inline`, for such templates are compiled wherever they are used.
#pragma once

#include "grouped.h"
#include "rolling.h"

#define HAMLET_CORRELATE_PLANE(EXTERN, T, S, K)                                                                        \
    EXTERN template void correlate_plane<T, S, K>(const Columns<T>&, int64_t, const S*, S*, int64_t, const Vector<T>*, \
                                                  Vector<T>);

#define HAMLET_CORRELATE_DEPTHWISE(EXTERN, T, S)                                                                    \
    HAMLET_CORRELATE_PLANE(EXTERN, T, S, 1)                                                                         \
    HAMLET_CORRELATE_PLANE(EXTERN, T, S, 3)                                                                         \
    HAMLET_CORRELATE_PLANE(EXTERN, T, S, 5)                                                                         \
    EXTERN template void correlate_rows<T, S>(const Convolution&, std::span<const Chunk>, const View&, const View&, \
                                              bool, int64_t, int64_t);

#define HAMLET_CORRELATE_GROUP(EXTERN, T)                                                                   \
    EXTERN template void correlate<T>(const Stencil<T>&, const GroupFilters<T>&, const T*, const Grids<T>&, \
                                      const Grids<T>&);

#define HAMLET_CORRELATIONS(EXTERN)                     \
    HAMLET_CORRELATE_DEPTHWISE(EXTERN, float, float)    \
    HAMLET_CORRELATE_DEPTHWISE(EXTERN, float, BFloat16) \
    HAMLET_CORRELATE_DEPTHWISE(EXTERN, float, Float16)  \
    HAMLET_CORRELATE_DEPTHWISE(EXTERN, double, double)  \
    HAMLET_CORRELATE_GROUP(EXTERN, float)               \
    HAMLET_CORRELATE_GROUP(EXTERN, double)
