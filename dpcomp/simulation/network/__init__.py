"""The network of a simulation: the variants of the protocol, the messages under way, and what goes wrong."""
