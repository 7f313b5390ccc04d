"""A simulation with JAX needs no torch, and dpcomp itself no JAX."""

import subprocess
import sys

WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "opacus", "pandas", "rich"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())

import dpcomp, dpcomp.federated, dpcomp.simulation, dpcomp.training
assert "jax" not in sys.modules
from dpcomp.training.jax import JAX
print(JAX(local_steps=2))
"""


def test_the_trainer_needs_no_torch_and_the_rest_no_jax():
    ended = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("JAX(local_steps=2")
