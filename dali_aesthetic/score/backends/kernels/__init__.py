"""Kernels of the fused backends: Triton (any sm_80 or later GPU) and QuACK epilogues (Hopper)."""
