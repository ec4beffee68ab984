"""One run: from a configuration to a run directory.

`config` says what a run is, `train` makes it, and
`RunDirectory` is what it leaves. Only the second needs Ray.
"""
