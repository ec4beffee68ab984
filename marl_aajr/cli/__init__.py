"""The command line `marl-aajr`. Nothing here imports torch or Ray before a command needs it."""
