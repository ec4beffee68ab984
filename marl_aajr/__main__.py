"""`python -m marl_aajr`: the command line without the console script."""

from __future__ import annotations

from marl_aajr.cli.app import main

if __name__ == "__main__":
    main()
