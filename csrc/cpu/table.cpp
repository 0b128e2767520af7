// The kernels of the instruction set that this file is compiled for.
#include "kernels.h"

#define HAMLET_TEXT_OF(name) #name
#define HAMLET_TEXT(name) HAMLET_TEXT_OF(name)

// The matrix unit's set has an attention of its own alone.
#if defined(__AMX_BF16__)
#define HAMLET_SHARED avx512
#else
#define HAMLET_SHARED HAMLET_ISA
#endif

namespace hamlet::HAMLET_SHARED {

void convolution_forward(const Convolution&);
void convolution_backward(const Convolution&);
double multiply_adds(int threads, int64_t items);

}  // namespace hamlet::HAMLET_SHARED

namespace hamlet::HAMLET_ISA {

void attention_forward(const Attention&);
void attention_backward(const Attention&);

extern const Kernels table;
const Kernels table{HAMLET_TEXT(HAMLET_ISA), attention_forward, attention_backward,
                    HAMLET_SHARED::convolution_forward, HAMLET_SHARED::convolution_backward, HAMLET_SHARED::multiply_adds};

}  // namespace hamlet::HAMLET_ISA
