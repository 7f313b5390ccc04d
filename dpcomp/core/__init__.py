"""Definitions that all other folders import: errors, random streams, supports, layouts, addresses, checks, storage."""
