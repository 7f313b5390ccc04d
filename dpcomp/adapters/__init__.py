"""Adapters: what carries the messages of both ends in frameworks and over transports."""
