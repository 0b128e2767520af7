"""The operators' CUDA C++ kernels: what hands tensors to ``hamlet._native.cuda``, which is built without torch."""
