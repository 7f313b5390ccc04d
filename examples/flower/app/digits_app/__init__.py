"""Handwritten digits, learned by nodes of Flower with privacy and compression."""
