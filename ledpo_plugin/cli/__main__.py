"""`python -m ledpo_plugin.cli`: the `ledpo` command, where its script is not at hand."""

import sys

from ledpo_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main())
