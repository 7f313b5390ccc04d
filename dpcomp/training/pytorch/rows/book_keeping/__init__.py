"""Book-keeping: per-example norms and clipped sums from the inputs and output gradients of layers."""
