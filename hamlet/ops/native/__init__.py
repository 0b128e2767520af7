"""The operators' C++ kernels for the CPU: what hands tensors to ``hamlet._native``, which knows nothing of torch."""
