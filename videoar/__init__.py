"""Both VideoAR papers, end to end, on videoar_kernels."""
