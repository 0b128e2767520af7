// What the kernels are written in: a thin layer over CUDA's built-ins, which costs nothing on the device. Without nvcc
// the same sources run on the CPU, a fibre a CUDA thread, and every access is checked (host/).
#pragma once

#if defined(__CUDACC__)
#include "device/builtins.h"
#else
#include "host/builtins.h"
#endif
