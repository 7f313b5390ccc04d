"""What is made when the site is built: the pages of the API, and the tables of measurements.

The API has a page for each folder of dpcomp. It holds the folder's modules and those below them, so a new module is on
the site without a change here. A line `<!-- rows: NAME -->` of a page becomes the table of docs/benchmarks/NAME.json.
"""

import pkgutil
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from benchmarks.harness.page import with_tables

FOLDER = "reference/api"
PACKAGE = Path(__file__).parents[1] / "dpcomp"
PAGE = """# {name}

::: {name}
    options:
      show_root_heading: false
"""


def folders() -> list[str]:
    """Return the full names of dpcomp's folders, and of its modules that stand in none, in alphabetical order."""
    return sorted(f"dpcomp.{module.name}" for module in pkgutil.iter_modules([str(PACKAGE)]))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages below the entry "API" of the navigation."""
    (reference,) = (entry["Reference"] for entry in config.nav or () if "Reference" in entry)
    (api,) = (entry["API"] for entry in reference if "API" in entry)
    api += [{name: _path(name)} for name in folders()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for name in folders():
        files.append(File.generated(config, _path(name), content=PAGE.format(name=name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables of measurements in their places."""
    return with_tables(markdown)


def _path(name: str) -> str:
    return f"{FOLDER}/{name.removeprefix('dpcomp.')}.md"
