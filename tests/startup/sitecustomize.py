"""Loaded first by every Python that a test starts: so many imports are faster with few collections."""

import gc

gc.set_threshold(100_000, 50, 100)
