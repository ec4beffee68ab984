"""Environments: names to games, games to batches. Import from the submodules: only some need torch."""
