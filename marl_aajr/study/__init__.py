"""A study: a grid of ordinary runs, their adversaries, their judgement and one report, on Ray Tune.

`config` reads what was asked, `runs` spells out the runs,
`graph` says what waits for what, `execution` has Ray Tune do it
in processes of `work`, and `run_study` is all of it.
"""
