"""The operators' C++ kernels for the CPU: what hands tensors to ``hamlet._native``, which is built without torch."""
