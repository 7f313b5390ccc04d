"""Local training: the only place that knows a framework."""
