"""All naive cases."""

from collections.abc import Iterator

from experiments.studies.audit.case import Case
from experiments.studies.audit.naive_releases import release_cases
from experiments.studies.audit.naive_servers import server_cases
from experiments.studies.audit.naive_stages import stage_cases
from experiments.studies.audit.naive_trainers import trainer_cases


def naive_cases() -> Iterator[Case]:
    """Return the cases that break their claims."""
    yield from stage_cases()
    yield from release_cases()
    yield from trainer_cases()
    yield from server_cases()
