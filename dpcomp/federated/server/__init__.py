"""The server of a federation: its rounds, what it keeps in a folder, and what it makes of updates."""

from dpcomp.federated.server.server import Server as Server
