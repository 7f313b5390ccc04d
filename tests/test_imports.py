import subprocess
import sys


def test_importing_the_library_imports_no_framework():
    script = "import sys, dpcomp; print([name for name in ('torch', 'opacus', 'jax') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


def test_the_public_names_stand_there():
    import dpcomp as dp

    promised = (
        "Clip Gaussian RandomK TopK Uniform Equal FixedWidth RangeCoder Codec Poisson Pipeline unsafe calibrate "
        "Guarantee Ledger Address SecretSeed PublicSeed "
        "NotPrivate CorruptPayload VersionMismatch BudgetExhausted DpcompError"
    )
    assert all(hasattr(dp, name) for name in promised.split())
    for error in (dp.NotPrivate, dp.CorruptPayload, dp.VersionMismatch, dp.BudgetExhausted):
        assert issubclass(error, dp.DpcompError)
