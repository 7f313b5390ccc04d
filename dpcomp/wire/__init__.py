"""The wire: payloads, the four steps of a round's exchange, and what both ends remember between rounds."""
