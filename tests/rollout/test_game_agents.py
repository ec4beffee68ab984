"""The border between an environment's ways and ours: names, types, legal actions, starts of actions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from marl_aajr.core.environment_values import (
    EnvironmentFault,
    agent_name,
    as_action,
    as_array,
    legal_actions,
    number,
    observation_check,
    split,
    zero_based,
)
from marl_aajr.rollout.environments import make_batch, resolve
from marl_aajr.rollout.pettingzoo_games import game_of
from tests.own_ways import AGENTS, NAME, PLAYED, OwnWays, Side, Turns


class TestNames:
    @pytest.mark.parametrize(
        ("agent", "name"),
        [("a b", "a b"), (3, "3"), (np.int64(3), "3"), (("red", 0), "red_0"), (((1, 2), -3), "1_2_-3")],
    )
    def test_each_kind_has_one(self, agent: Any, name: str) -> None:
        assert agent_name(agent) == name

    def test_an_enum_is_called_as_it_is_written(self) -> None:
        assert agent_name(Side.NORTH) == "NORTH"

    def test_an_object_without_a_text_of_its_own_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"agents that say who they are.*__str__"):
            agent_name(object())

    def test_two_agents_of_one_name_are_refused(self) -> None:
        env = OwnWays()
        env.possible_agents = [1, "1"]
        with pytest.raises(ValueError, match="a name of its own"):
            game_of(env, name="twins")

    @pytest.mark.parametrize("kind", AGENTS)
    def test_a_game_speaks_names_and_its_environment_its_own_keys(self, kind: str) -> None:
        game = game_of(OwnWays(agents=kind), name="own")
        assert list(game.agent_ids.values()) == AGENTS[kind]
        turn = game.reset(seed=0)
        while not turn.over:
            assert tuple(turn.obs) == game.possible_agents == tuple(map(agent_name, AGENTS[kind]))
            turn = game.step(dict.fromkeys(game.possible_agents, 0))


class TestTypes:
    @pytest.mark.parametrize("given", [1.5, [1.5], (1.5,), np.float16(1.5), np.array(1.5), torch.tensor(1.5)])
    def test_one_number_comes_in_every_form(self, given: Any) -> None:
        assert number(given) == 1.5
        assert as_array(given, (1,), np.float32).tolist() == [1.5]
        assert as_array(given, (), np.float32) == 1.5

    def test_a_flag_in_a_list_is_read_and_not_taken_for_the_list(self) -> None:
        assert not number([False])

    @pytest.mark.parametrize("given", [None, [1.0, 2.0], "many"])
    def test_what_is_not_one_number_is_refused(self, given: Any) -> None:
        with pytest.raises((ValueError, TypeError)):
            number(given)

    @pytest.mark.parametrize("given", ["bool", "uint8", "int64", "float16", "float64"])
    def test_observations_have_the_type_of_their_space(self, given: str) -> None:
        check = observation_check(spaces.Box(-1, 9, (4,), np.float32))
        seen = check(np.array([0, 1, 1, 0], given))
        assert (seen.dtype, seen.tolist()) == (np.float32, [0, 1, 1, 0])

    def test_whole_numbers_are_integers_and_others_are_not(self) -> None:
        check = observation_check(spaces.Box(0, 9, (2,), np.uint8))
        assert check([1.0, 2.0]).dtype == np.uint8
        with pytest.raises(ValueError, match="has dtype float64, its space says uint8"):
            check([1.5, 2.0])

    @pytest.mark.parametrize("form", ["number", "array", "list"])
    def test_rewards_and_flags_come_in_every_form(self, form: str) -> None:
        batch = make_batch(resolve(NAME, {"form": form}), 2)
        batch.reset(seed=0)
        earned, over = 0.0, False
        while not over:
            step = batch.step(dict.fromkeys(("0", "1"), torch.zeros(2, dtype=torch.int64)))
            earned, over = earned + float(step.rewards["0"][0]), bool(step.episode_over[0])
        assert earned == 10
        assert step.truncations["0"].all()


class TestActions:
    def test_spaces_count_from_0_and_environments_from_their_start(self) -> None:
        space = spaces.MultiDiscrete([3, 2], start=[5, -1])
        assert zero_based(space) == spaces.MultiDiscrete([3, 2])
        assert zero_based(spaces.Discrete(3, start=4)) == spaces.Discrete(3)
        assert zero_based(spaces.MultiBinary(2)) == spaces.MultiDiscrete([2, 2], dtype=np.int8)
        assert as_action(torch.tensor([2, 1]), space).tolist() == [7, 0]
        assert as_action(np.int64(2), spaces.Discrete(3, start=4)) == 6
        assert as_action([0.5], spaces.Box(-1, 1, (1,), np.float64)).dtype == np.float64

    @pytest.mark.parametrize(("acts", "shape"), [("discrete", ()), ("multi", (2,))])
    def test_a_batch_counts_from_0(self, acts: str, shape: tuple[int, ...]) -> None:
        batch = make_batch(resolve(NAME, {"acts": acts, "start": 2}), 2)
        assert all(zero_based(space) == space for space in batch.action_spaces.values())
        batch.reset(seed=0)
        PLAYED.clear()
        batch.step(dict.fromkeys(("0", "1"), torch.ones(2, *shape, dtype=torch.int64)))
        assert set(PLAYED) == {(1, 1) if shape else (1,)}


class TestLegalActions:
    def test_a_dict_is_taken_by_what_it_holds(self) -> None:
        for key in ("observation", "observations", "obs"):
            assert split({key: 1, "action_mask": 2}) == (1, 2)
            assert split({key: 1, "state": 3, "action_mask": 2}) == (1, 2)
        assert split({"seen": 1}) == (1, None)
        with pytest.raises(ValueError, match="a Dict of camera, gps"):
            split({"camera": 1, "gps": 2, "action_mask": 3})

    @pytest.mark.parametrize("mask", [[1, 0, 1], np.array([True, False, True]), (np.array([1, 0]), [2.0])])
    def test_masks_come_in_every_form(self, mask: Any) -> None:
        assert legal_actions(mask, 3).tolist() == [1, 0, 1]

    @pytest.mark.parametrize("acts", ["discrete", "multi"])
    def test_those_in_infos_stand_beside_the_observation(self, acts: str) -> None:
        batch = make_batch(resolve(NAME, {"masks": True, "acts": acts}), 2)
        batch.reset(seed=0)
        legal = [False, True, True] + [True, False] * (acts == "multi")
        assert batch.action_mask["0"] is not None
        assert batch.action_mask["0"].tolist() == [legal, legal]

    def test_those_that_come_later_are_a_fault(self) -> None:
        class Late(OwnWays):
            def reset(self, seed: int | None = None, options: Any = None) -> Any:
                obs, _ = super().reset(seed, options)
                return obs, {agent: {} for agent in self.agents}

        game = game_of(Late(masks=True), name="late")
        game.reset(seed=0)
        with pytest.raises(EnvironmentFault, match="give it from the first reset on"):
            game.step({"0": 1, "1": 1})

    def test_those_of_players_who_wait_are_seen_in_turns(self) -> None:
        class SecondOnly(Turns):
            def _tell(self) -> None:
                super()._tell()
                self.infos["a"] = {}

        game = game_of(SecondOnly(), name="second")
        assert game.reset(seed=0).obs["a"]["action_mask"].tolist() == [1, 1, 1]
        assert game.step({"a": 0}).obs["b"]["action_mask"].tolist() == [1, 0, 1]

    def test_those_of_another_length_are_a_fault(self) -> None:
        class Short(OwnWays):
            def _infos(self) -> Any:
                return {agent: {"action_mask": [1, 1]} for agent in self.possible_agents}

        with pytest.raises(EnvironmentFault, match="action_mask of agent 0 has 2 entries for 3 actions"):
            game_of(Short(), name="short").reset(seed=0)


class Counted(OwnWays):
    """Counts the resets of all of its copies, and fails in them if it is told to."""

    resets = 0

    def __init__(self, *, fails: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.fails, self.form = fails, float  # which pickle takes

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        Counted.resets += 1
        if self.fails:
            raise KeyError("map")
        return super().reset(seed, options)


class TestTheFirstReset:
    @pytest.mark.parametrize("masks", [False, True])
    def test_only_one_copy_is_reset_to_know_the_spaces(self, masks: bool) -> None:
        Counted.resets = 0
        batch = make_batch(resolve(Counted, {"masks": masks}), 5)
        batch.reset(seed=0)
        assert Counted.resets == 1 + 5
        assert (batch.action_mask["0"] is not None) == masks

    def test_a_game_whose_spaces_nobody_asks_for_is_not_reset_before_it_is_played(self) -> None:
        Counted.resets = 0
        game = game_of(Counted(masks=True), name="counted")
        assert "action_mask" in game.reset(seed=0).obs["0"]
        assert (Counted.resets, game.infos_have_masks) == (1, True)
        assert "action_mask" in game.observation_spaces["0"].spaces
        assert Counted.resets == 1

    def test_a_state_goes_on_in_copies_that_were_never_reset(self) -> None:
        played, other = (make_batch(resolve(Counted, {"masks": True}), 2) for _ in range(2))
        played.reset(seed=0)
        other.set_state(played.get_state())
        for batch in (played, other):
            batch.step(dict.fromkeys(("0", "1"), torch.ones(2, dtype=torch.int64)))
        mask = other.action_mask["0"]
        assert mask is not None
        assert mask.tolist() == [[False, True, True]] * 2

    def test_its_own_error_comes_through(self) -> None:
        game = game_of(Counted(fails=True), name="counted")
        with pytest.raises(
            EnvironmentFault, match="environment counted, step 0: raised KeyError in reset: 'map'"
        ) as caught:
            _ = game.observation_spaces
        assert isinstance(caught.value.__cause__, KeyError)
