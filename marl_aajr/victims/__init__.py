"""Victims: frozen teams of policies that play, and are attacked, without Ray."""

from __future__ import annotations

from marl_aajr.victims.filters import ObservationFilter
from marl_aajr.victims.layers import LAYERS, ChannelsFirst, ChannelsLast, ClipLogStd, FreeLogStd
from marl_aajr.victims.noise import Smoothing
from marl_aajr.victims.portable import fingerprint
from marl_aajr.victims.recurrent import Memory, Recurrent
from marl_aajr.victims.smoothing import SmoothedVictim, smoothed
from marl_aajr.victims.victim import Victim
from marl_aajr.victims.victim_policy import VictimPolicy

__all__ = [
    "LAYERS",
    "ChannelsFirst",
    "ChannelsLast",
    "ClipLogStd",
    "FreeLogStd",
    "Memory",
    "ObservationFilter",
    "Recurrent",
    "SmoothedVictim",
    "Smoothing",
    "Victim",
    "VictimPolicy",
    "fingerprint",
    "smoothed",
]
