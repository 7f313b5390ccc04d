"""What the codecs cost and save on whole vectors: a study of bytes, errors and bounds."""
