"""dpcomp: compressed federated learning under differential privacy, measured on real bytes.

The names stand in the order in which data flows; so do the files behind them. Between these stand
three that a user never names: `accounting` before `guarantee`, `terms` after it, `exchange` before `pipeline`.
"""

from dpcomp.core.errors import BudgetExhausted as BudgetExhausted
from dpcomp.core.errors import CorruptPayload as CorruptPayload
from dpcomp.core.errors import DpcompError as DpcompError
from dpcomp.core.errors import NotPrivate as NotPrivate
from dpcomp.core.errors import VersionMismatch as VersionMismatch

# isort: split
from dpcomp.privacy.claim import Bounded as Bounded
from dpcomp.privacy.claim import Released as Released
from dpcomp.privacy.claim import Unbounded as Unbounded

# isort: split
from dpcomp.core.randomness import PublicSeed as PublicSeed
from dpcomp.core.randomness import SecretSeed as SecretSeed

# isort: split
from dpcomp.core.support import Everywhere as Everywhere
from dpcomp.core.support import Listed as Listed
from dpcomp.core.support import Seeded as Seeded

# isort: split
from dpcomp.core.address import SERVER as SERVER
from dpcomp.core.address import Address as Address
from dpcomp.core.layout import Layout as Layout
from dpcomp.wire.update import Update as Update

# isort: split
from dpcomp.privacy.unit_gradients import Total as Total

# isort: split
from dpcomp.sparsify import RandomK as RandomK
from dpcomp.sparsify import TopK as TopK

# isort: split
from dpcomp.privacy import Clip as Clip
from dpcomp.privacy import Gaussian as Gaussian
from dpcomp.privacy import Poisson as Poisson
from dpcomp.privacy import unsafe as unsafe

# isort: split
from dpcomp.privacy.budget import Budget as Budget
from dpcomp.privacy.guarantee import Guarantee as Guarantee
from dpcomp.privacy.ledger import Ledger as Ledger
from dpcomp.privacy.ledger import Permit as Permit

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
from dpcomp.wire.memory import ClientMemory as ClientMemory
from dpcomp.wire.memory import ServerMemory as ServerMemory

# isort: split
from dpcomp.pipeline import Pipeline as Pipeline

# isort: split
from dpcomp.privacy.calibrate import calibrate as calibrate
