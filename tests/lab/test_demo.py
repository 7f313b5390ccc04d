from dpcomp.lab import demo
from dpcomp.lab.results.results_file import ResultsFile


def test_the_demo_shows_four_pipelines_from_runs_of_its_own(tmp_path, capsys):
    demo.demo(tmp_path, rounds=2)
    printed = capsys.readouterr().out
    reports = ResultsFile(path=tmp_path / "demo.jsonl").read()
    assert [facts["config"]["demo"] for facts in reports] == list(demo.METHODS)
    budgets = [facts["guarantee"]["epsilon"] for facts in reports]
    assert all(0.99 * demo.EPSILON < epsilon <= demo.EPSILON for epsilon in budgets[:3])
    assert budgets[3] is None
    assert "∞" in printed
    assert reports[0]["coordinates"] >= 10_000
    for facts in reports:
        accuracy = facts["curves"]["test_accuracy"][-1]
        assert f"{accuracy:.1%}" in printed
    for figure in ("training.png", "scrambling.png"):
        assert (tmp_path / figure).stat().st_size > 10_000
