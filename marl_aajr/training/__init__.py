"""One run: from a configuration to a run directory.

:mod:`~marl_aajr.training.config` says what a run is, :func:`~marl_aajr.training.trainer.train` makes it, and
:class:`~marl_aajr.training.run_directory.RunDirectory` is what it leaves. Only the second needs Ray.
"""
