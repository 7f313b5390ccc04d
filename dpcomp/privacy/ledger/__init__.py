"""The ledger: what is charged before noise is drawn, and the permits to draw it."""
