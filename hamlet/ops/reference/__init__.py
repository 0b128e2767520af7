"""The operators in plain PyTorch: the definition that every kernel is held to, and what serves where none can."""
