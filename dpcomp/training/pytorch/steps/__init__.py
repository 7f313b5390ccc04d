"""What a local step is made with: the optimiser, the pull of FedProx, and the noise that steps leave."""
