"""dpcomp: compressed federated learning under differential privacy, measured on real bytes.

The names stand in the order in which data flows; so do the files behind them. Between these stand
three that a user never names: `accounting` before `guarantee`, `terms` after it, `exchange` before `pipeline`.
"""

from dpcomp.errors import BudgetExhausted as BudgetExhausted
from dpcomp.errors import CorruptPayload as CorruptPayload
from dpcomp.errors import DpcompError as DpcompError
from dpcomp.errors import NotPrivate as NotPrivate
from dpcomp.errors import VersionMismatch as VersionMismatch

# isort: split
from dpcomp.claim import Bounded as Bounded
from dpcomp.claim import Released as Released
from dpcomp.claim import Unbounded as Unbounded

# isort: split
from dpcomp.randomness import PublicSeed as PublicSeed
from dpcomp.randomness import SecretSeed as SecretSeed

# isort: split
from dpcomp.support import Everywhere as Everywhere
from dpcomp.support import Listed as Listed
from dpcomp.support import Seeded as Seeded

# isort: split
from dpcomp.update import SERVER as SERVER
from dpcomp.update import Address as Address
from dpcomp.update import Layout as Layout
from dpcomp.update import Update as Update

# isort: split
from dpcomp.units import Total as Total

# isort: split
from dpcomp.sparsify import RandomK as RandomK
from dpcomp.sparsify import TopK as TopK

# isort: split
from dpcomp.mechanism import Clip as Clip
from dpcomp.mechanism import Gaussian as Gaussian
from dpcomp.mechanism import Poisson as Poisson
from dpcomp.mechanism import unsafe as unsafe

# isort: split
from dpcomp.budget import Budget as Budget
from dpcomp.guarantee import Guarantee as Guarantee
from dpcomp.ledger import Ledger as Ledger
from dpcomp.ledger import Permit as Permit

# isort: split
from dpcomp.codec import Codec as Codec
from dpcomp.codec import Dithered as Dithered
from dpcomp.codec import Equal as Equal
from dpcomp.codec import FixedStep as FixedStep
from dpcomp.codec import FixedWidth as FixedWidth
from dpcomp.codec import Float16 as Float16
from dpcomp.codec import Float32 as Float32
from dpcomp.codec import LastBroadcast as LastBroadcast
from dpcomp.codec import Nearest as Nearest
from dpcomp.codec import RangeCoder as RangeCoder
from dpcomp.codec import Rotated as Rotated
from dpcomp.codec import Sign as Sign
from dpcomp.codec import Stochastic as Stochastic
from dpcomp.codec import Ternary as Ternary
from dpcomp.codec import Uniform as Uniform
from dpcomp.codec import Waterfill as Waterfill

# isort: split
from dpcomp.memory import ClientMemory as ClientMemory
from dpcomp.memory import ServerMemory as ServerMemory

# isort: split
from dpcomp.pipeline import Pipeline as Pipeline

# isort: split
from dpcomp.calibrate import calibrate as calibrate
