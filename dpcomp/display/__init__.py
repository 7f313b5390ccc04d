"""What values print and show in notebooks: short calls, columns of text, small curves, and HTML."""
