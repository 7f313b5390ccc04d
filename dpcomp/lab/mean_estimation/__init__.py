"""A benchmark of distributed mean estimation under differential privacy: error, bytes and trust of one round."""
