// The matrix units: products of fragments that the lanes of a warp hold together, in the layouts of PTX's mma.sync.
#pragma once

#include "number.h"

#if defined(__CUDACC__)
#include "device/matrix.h"
#else
#include "host/matrix.h"
#endif
