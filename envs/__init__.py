"""The project's own environments, installed as ``marl_aajr.envs``."""
