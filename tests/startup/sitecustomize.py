"""Loaded first by every Python that a test starts: imports are faster with few collections, or forked."""

import gc
import importlib
import os
import sys

gc.set_threshold(100_000, 50, 100)
if "WARM_START" in os.environ and (
    "WARM_COMMANDS" in os.environ or any("default_worker.py" in word for word in sys.orig_argv[1:3])
):
    importlib.import_module("warm_start").hand_over(os.environ["WARM_START"])
