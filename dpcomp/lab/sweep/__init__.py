"""All trials of one config or many."""
