"""A study: a grid of ordinary runs, their adversaries, their evaluations and one report, on Ray Tune.

`study_config` reads what was asked, `runs` spells out the runs, `graph` says what waits for what,
`validation` finds what is wrong, `execution` has Ray Tune do the work in processes of `worker`, and `driver`
is all of it.
"""
