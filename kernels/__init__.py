"""Triton kernels of the operators; installed as ``hamlet.kernels``."""
