"""Peers: the same work by other means, as their users write it."""
