"""IPPO in JaxMARL on MPE's simple_spread at the benchmarks' reference setting, jitted as a whole.

For `bench_jaxmarl.py`, which starts it with a Python that has jaxmarl and distrax: an iteration for every
line on standard input, a line `seconds ...` on standard output. The algorithm is that of JaxMARL's own
baseline for feed-forward networks: sampling, GAE, clipped losses, one jitted function an iteration.
"""

import os
import sys
import time

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import distrax
import jax
import jax.numpy as jnp
import jaxmarl
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

COPIES, STEPS, EPOCHS, MINIBATCHES = 160, 25, 10, 12
GAMMA, LAMBDA, CLIP, ENTROPY, VALUE = 0.99, 0.95, 0.2, 0.01, 0.5

env = jaxmarl.make("MPE_simple_spread_v3")
ROWS = COPIES * env.num_agents


class ActorCritic(nn.Module):
    """Two networks of 64 and 64 with tanh."""

    actions: int

    @nn.compact
    def __call__(self, obs):
        def tower(outputs):
            hidden = obs
            for _ in range(2):
                hidden = nn.tanh(nn.Dense(64)(hidden))
            return nn.Dense(outputs)(hidden)

        return distrax.Categorical(logits=tower(self.actions)), tower(1).squeeze(-1)


network = ActorCritic(env.action_space(env.agents[0]).n)


def rows_of(by_agent):
    return jnp.stack([by_agent[agent] for agent in env.agents]).reshape(ROWS, -1)


def sample(state, _):
    train, copies, obs, key = state
    key, choose, move = jax.random.split(key, 3)
    seen = rows_of(obs)
    policy, value = network.apply(train.params, seen)
    action = policy.sample(seed=choose)
    actions = dict(zip(env.agents, action.reshape(env.num_agents, COPIES), strict=True))
    obs, copies, reward, done, _ = jax.vmap(env.step)(jax.random.split(move, COPIES), copies, actions)
    column = (seen, action, policy.log_prob(action), value, rows_of(reward)[:, 0], rows_of(done)[:, 0])
    return (train, copies, obs, key), column


def loss_of(params, rows):
    (obs, action, log_prob, value, _, _), advantage, target = rows
    policy, now = network.apply(params, obs)
    near = value + (now - value).clip(-CLIP, CLIP)
    value_loss = jnp.maximum((now - target) ** 2, (near - target) ** 2).mean() / 2
    ratio = jnp.exp(policy.log_prob(action) - log_prob)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    gain = jnp.minimum(ratio * advantage, ratio.clip(1 - CLIP, 1 + CLIP) * advantage).mean()
    return VALUE * value_loss - gain - ENTROPY * policy.entropy().mean()


def learn(state, _):
    train, key, columns = state
    key, shuffle = jax.random.split(key)
    order = jax.random.permutation(shuffle, STEPS * ROWS)

    def divided(column):
        flat = column.reshape(STEPS * ROWS, *column.shape[2:])[order]
        return flat.reshape(MINIBATCHES, -1, *flat.shape[1:])

    def step(train, rows):
        return train.apply_gradients(grads=jax.grad(loss_of)(train.params, rows)), None

    train, _ = jax.lax.scan(step, train, jax.tree.map(divided, columns))
    return (train, key, columns), None


@jax.jit
def iteration(state):
    (train, copies, obs, key), columns = jax.lax.scan(sample, state, None, STEPS)
    *_, value, reward, done = columns
    _, last = network.apply(train.params, rows_of(obs))

    def accumulate(carry, row):
        advantage, following = carry
        value, reward, done = row
        delta = reward + GAMMA * following * (1 - done) - value
        advantage = delta + GAMMA * LAMBDA * (1 - done) * advantage
        return (advantage, value), advantage

    start = (jnp.zeros_like(last), last)
    _, advantage = jax.lax.scan(accumulate, start, (value, reward, done), reverse=True)
    rows = (columns, advantage, advantage + value)
    (train, key, _), _ = jax.lax.scan(learn, (train, key, rows), None, EPOCHS)
    return train, copies, obs, key


def main():
    key, begin, make = jax.random.split(jax.random.PRNGKey(0), 3)
    obs, copies = jax.vmap(env.reset)(jax.random.split(begin, COPIES))
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(5e-4))
    params = network.init(make, rows_of(obs))
    train = TrainState.create(apply_fn=network.apply, params=params, tx=optimizer)
    state = train, copies, obs, key
    for _ in sys.stdin:
        started = time.perf_counter()
        state = jax.block_until_ready(iteration(state))
        print("seconds", time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
