"""Local training with PyTorch and Opacus."""
