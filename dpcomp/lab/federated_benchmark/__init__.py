"""A benchmark of compressed federated learning under local differential privacy: accuracy and bytes at one ε."""
