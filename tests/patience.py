"""How long a test waits for another process: a guard against what hangs, no measure of speed."""

from __future__ import annotations

PATIENCE = 300.0
"""Seconds; a busy machine takes a minute for a Ray that an idle one starts in five seconds."""
