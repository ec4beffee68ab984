"""Play under attack: agents act on what an adversary shows them, and learn from what they saw.

- `rollout_attack`: the attack as a value, and how it perturbs what an acting policy (`attackable`) observes.
- `attacked_play`: between an environment and its agents, while a batch is sampled; `attacked_copies` says who
  is attacked, and when.
- `attacked_metrics`, `inner_gap`: what it achieved, and how much it left to a stronger adversary.
- `training_attack`: the same in an evaluation.
- `kept_path`, `beside_regularizers`: its path for AAJR, and which regularizers can stand beside it.
"""
