// The kernels of the instruction set that this file is compiled for.
#include "kernels.h"

#define HAMLET_TEXT_OF(name) #name
#define HAMLET_TEXT(name) HAMLET_TEXT_OF(name)

namespace hamlet::HAMLET_ISA {

void attention_forward(const Attention&);
void attention_backward(const Attention&);
void convolution_forward(const Convolution&);
void convolution_backward(const Convolution&);
double multiply_adds(int threads, int64_t items);

extern const Kernels table;
const Kernels table{HAMLET_TEXT(HAMLET_ISA), attention_forward, attention_backward,
                    convolution_forward, convolution_backward, multiply_adds};

}  // namespace hamlet::HAMLET_ISA
