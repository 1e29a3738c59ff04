"""From kernels to C and Triton."""
