"""Per-example gradients, a row an example: by two engines, and held to what each example alone gives."""
