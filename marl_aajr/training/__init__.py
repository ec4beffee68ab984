"""One run: from a configuration to a run directory, and from there to its end after a stop.

`config` says what a run is, `train` makes it, `RunDirectory` is what it leaves, and `run_record` reads that.
Only the second needs Ray. How a run resumes, and why its numbers do not change, is said in `checkpoint`.
"""
