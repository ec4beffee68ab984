"""The plug-in: a regularizer in the loss of any torch algorithm of RLlib's new API stack; see `robustify`."""
