"""The methods that the benchmark trains, a file for each kind."""

from dpcomp.lab.federated_benchmark.method import Method
from dpcomp.lab.federated_benchmark.methods.count_sketch import FetchSGD
from dpcomp.lab.federated_benchmark.methods.dense import DenseFloat32, EdenDense
from dpcomp.lab.federated_benchmark.methods.fixed_support import FixedRandom, TwoPhase
from dpcomp.lab.federated_benchmark.methods.random_support import CommonSupport, OwnSupport
from dpcomp.lab.federated_benchmark.methods.shifted import SoteriaFL
from dpcomp.lab.federated_benchmark.methods.top_k import TopKFeedback

REFERENCE = DenseFloat32()  # what the others are compared with
METHODS: tuple[Method, ...] = (
    REFERENCE,
    DenseFloat32(momentum=0.9),
    OwnSupport(share=0.01, bits=1),
    OwnSupport(share=0.06, bits=2),
    TopKFeedback(share=0.01, momentum=0.9),
    EdenDense(bits=1),
    CommonSupport(share=0.01, bits=1),
    CommonSupport(share=0.06, bits=2),
    FixedRandom(share=0.06, bits=2),
    TwoPhase(share=0.06, bits=2),
    TopKFeedback(share=0.01),
    SoteriaFL(share=0.06, bits=2),
    FetchSGD(share=0.4),
)
