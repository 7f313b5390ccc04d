"""Units: the gradients of examples or clients, what they add up to, and which of them a sum holds."""
