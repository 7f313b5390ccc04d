"""Pictures of digits or of clothes, learned by nodes of Flower with privacy and compression."""
