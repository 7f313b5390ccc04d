"""What Poisson private representation (PPR) sends at most, by its theorem: computed, and not run.

PPR simulates Gaussian noise at each client exactly (Liu, Chen, Li & Özgür 2024, 2405.20782), so its error is that of
the Gaussian mechanism. It takes a time that grows as 2 to the power of the bits; its authors too compute its curves.
"""

import math

from dpcomp.lab.mean_estimation.method import Plan

ALPHA = 2.0  # of the source's experiments


def poisson_private_bits(plan: Plan) -> float:
    """Return the bits a client that PPR needs on average, at most, for the noise of a plan on the sum.

    A client sends N(x, z²/n) in each coordinate, whose mean has the noise of the plan. With proposals from
    N(0, z²/n + 1/d), the divergence is D = d/2·log₂(1 + n/(d·z²)) for ‖x‖ = 1. The index K has
    E[log₂ K] ≤ ℓ = D + log₂(3.56)/min((α − 1)/2, 1), and is written in ℓ + log₂(ℓ + 1) + 2 bits.

    Source: Liu et al. 2024, the theorem on the communication of PPR and the authors' code, with α = 2. Beside the
    central guarantee of the plan, a body keeps a local one, which grows by the factor 2α.

    Args:
        plan: A plan of `GaussianFloat32(trust="server")`.
    """
    n, d = plan.setting.clients, plan.setting.dimensions
    divergence = d / 2 * math.log2(1 + n / (d * plan.noise_multiplier**2))
    index = divergence + math.log2(3.56) / min((ALPHA - 1) / 2, 1)
    return index + math.log2(index + 1) + 2
