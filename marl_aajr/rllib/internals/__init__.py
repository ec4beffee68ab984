"""Every private or unannotated name of RLlib that this project touches, in one place.

Checked against Ray 2.60; when Ray is upgraded, these are the files to read again:

- `algorithms`: configurations, registries and connectors; errors that RLlib only logs, raised; lost learners.
- `runners`: the multi-agent env runner and its episodes.
- `learners`: gradients and losses of torch learners, and the state that their checkpoints leave out.
- `modules`: the layers inside RLlib's default modules.
- `cores`: what Ray has given to a process.

Classes named `Open...` are RLlib's own, with public names for the private parts that ours read and replace.
"""
