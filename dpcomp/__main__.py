"""python -m dpcomp: the same as the command `dpcomp`."""

import sys

from dpcomp.lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
