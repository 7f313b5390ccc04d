"""The harness: work that takes turns, rows with a ratio and a goal, their table, and records as JSON."""
