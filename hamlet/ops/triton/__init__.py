"""The operators' Triton kernels: what hands tensors to ``hamlet.kernels``, which is imported when it is first used."""
