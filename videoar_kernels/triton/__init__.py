"""The operators again in Triton, for NVIDIA GPUs without the compiled CUDA library. Triton is an optional extra."""
