"""A study: a grid of ordinary runs, their adversaries, their judgement and one report, on Ray Tune.

:mod:`~marl_aajr.study.config` reads what was asked, :mod:`~marl_aajr.study.runs` spells out the runs,
:mod:`~marl_aajr.study.graph` says what waits for what, :mod:`~marl_aajr.study.execution` has Ray Tune do it
in processes of :mod:`~marl_aajr.study.work`, and :func:`~marl_aajr.study.study.run_study` is all of it.
"""
