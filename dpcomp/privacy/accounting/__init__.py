"""Accounting: from the Gaussians that were released to ε, by Rényi DP and by distributions of the privacy loss."""
