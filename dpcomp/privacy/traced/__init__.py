"""Traces of JAX: a clipped sum and a release inside a compiled program, whose noise was drawn before it runs."""
