"""Closed forms: what noise leaves of a top-k, and how many bits supports, values and predictions must take.

Every formula of the paper that a number rests on is a function here, with its source. Symbols, the same in all
modules:

- d coordinates, of which a top-k keeps the k of largest magnitude; density κ = k/d
- g the clean vector, n ~ N(0, σ²) independent noise on each coordinate; SNR = mean of g² ÷ σ²
- recall: the share of the clean top-k that is in the noisy top-k
- overlap r: the share that the supports of two consecutive rounds have in common
- captured energy: the share of ‖g‖² on the support
- φ, Φ: density and distribution function of the standard normal; H₂: the binary entropy in bits
"""
