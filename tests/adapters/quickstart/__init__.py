"""A Flower app without privacy, in the form of Flower's quickstart with PyTorch: what docs/guides/flower.md changes."""
