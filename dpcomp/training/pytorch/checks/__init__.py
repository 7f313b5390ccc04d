"""What is held still or to a form while training runs: attributes, buffers, batches, public rows."""
