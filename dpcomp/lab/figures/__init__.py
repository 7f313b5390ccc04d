"""Figures that every sweep draws."""
