"""Adversaries that play or train against frozen policies, and the attacks that come of it.

    request          what is asked for, and the configuration of the adversary's run
    training         warm start, a small search over settings of PPO, and an ordinary run
    store            where the adversaries of a run are kept, how strong each is, how one is found again
    warm_start       an observation adversary begins with what PGD does

    victim_game      the game of frozen victims and learning adversaries, a `BatchedEnv`
    game_settings    its settings as plain values, and the game as an environment by name
    observation_game adversaries that change what the victims observe (SA-RL, PA-AD)
    agent_game       adversaries that act: a traitor in the team, or the other side

    learned          attacks that must be fitted first, and those that PPO has trained
    robust_sarsa     the attack on a learned critic of the victim

What an adversary's action means stands in `marl_aajr.core.adversary_actions`; ATLA uses the same.
"""
