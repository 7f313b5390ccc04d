"""The two ends of a federation as they run anywhere; no framework is imported."""
