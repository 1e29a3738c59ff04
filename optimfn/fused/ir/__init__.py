"""What is traced: graphs, shapes, operators, kernels."""
