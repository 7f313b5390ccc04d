"""While the tests run, the shapes and types in the signatures through which arrays flow are checked."""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

ARRAYS_FLOW = (
    *("dpcomp.units", "dpcomp.selection", "dpcomp.sparsify", "dpcomp.mechanism", "dpcomp.tracking", "dpcomp.memory"),
    *("dpcomp.codec.codec", "dpcomp.codec.rate", "dpcomp.codec.widths"),
    *("dpcomp.codec.predict", "dpcomp.codec.quantize", "dpcomp.codec.entropy"),
    *("analysis.scrambling", "analysis.remote_rate", "analysis.monte_carlo"),
    *("analysis.moving", "analysis.ranking", "analysis.layers", "analysis.rate", "analysis.efficiency"),
)

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float, as everywhere in Python
install_import_hook(ARRAYS_FLOW, "tests.conftest.check")
