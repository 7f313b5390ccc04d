"""A trainer in one class: least squares in NumPy, on made-up examples."""

import numpy as np

import dpcomp as dp


class LeastSquares:
    """Fits y ≈ x·w by one private gradient step a round."""

    assumptions = ()  # of the guarantee, besides dpcomp's own

    def __init__(self, learning_rate):
        self.learning_rate = learning_rate

    def make_trainer(self, federation):
        """Make 200 examples up and divide them; called once, before the first round."""
        self.federation, self.layout = federation, dp.Layout.of({"weights": (3,)})
        self.initial_model = np.zeros(3, dtype=np.float32)
        stream = np.random.default_rng(0)
        self.inputs = stream.standard_normal((200, 3)).astype(np.float32)
        self.targets = self.inputs @ np.array([1.0, -2.0, 0.5], dtype=np.float32)
        self.parts = federation.split(np.zeros(200, dtype=np.int64))  # no classes: all labels alike
        return self

    def train(self, client, start, memory, ledger):
        """Charge, draw a batch, release the sum of its gradients, and step."""
        pipeline, secret, place = self.federation.pipeline, self.federation.secret, memory.address
        permit = ledger.charge(pipeline.cost, place, steps=1)
        mine = self.parts[client]
        stream = secret.stream("sample", place.run, client, place.round)
        batch = mine[pipeline.sampling.draw(len(mine), stream)]
        errors = self.inputs[batch] @ start - self.targets[batch]
        gradients = errors[:, None] * self.inputs[batch]  # row i is the gradient of example i alone
        released = pipeline.release([gradients], memory, secret, permit)
        return released.derive(released.dense() * -self.learning_rate / self.federation.expected_batch_size)

    def evaluate(self, model):
        """Measure the mean squared error; these examples are public."""
        return {"test_loss": float(np.mean((self.inputs @ model - self.targets) ** 2))}
