"""The table of a run's rows."""

import pandas as pd


class RunTable(pd.DataFrame):
    """A DataFrame that prints all of its columns, line after line, where pandas leaves out those in the middle.

    The first columns of a run are those that matter most. What is computed of the table is a plain DataFrame.
    """

    def __repr__(self) -> str:
        with pd.option_context("display.max_columns", None):
            return super().__repr__()
