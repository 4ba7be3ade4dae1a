"""An environment of your own, whole: give change, and hear what your coins make. Checked, trained on, evaluated.

python examples/my_env.py [FOLDER] [key=value ...]
"""

import sys
from pathlib import Path

import gymnasium
from retort.agents.evaluate import evaluate
from retort.algos.config import preset, resolve
from retort.algos.launch import launch
from retort.envs.check import check_env
from retort.envs.single import single_turn

COINS = ("50", "20", "10", "5", "2", "1")


def count(prompt, answer):
    due, paid = int(prompt.split()[1]), sum(int(word) for word in answer.split() if word in COINS)
    return float(paid == due), f"that makes {paid} of {due}"


def change(prompt):
    left, coins = int(prompt.split()[1]), []
    for coin in COINS:
        coins += [coin] * (left // int(coin))
        left %= int(coin)
    return " ".join(coins)


prompts = [f"give {amount}" for amount in range(1, 100)]
gymnasium.register("me/Till-v0", single_turn(prompts, count, answers=change, near_misses=lambda p: [change(p) + " 1"]))

if __name__ == "__main__":
    check_env(gymnasium.make("me/Till-v0"))
    folder, settings, model = Path(*sys.argv[1:2] or ["runs/till"]), sys.argv[2:], "tiny"
    for recipe, steps in ("sft", 60), ("srpo", 30):
        config = resolve({**preset(recipe, model), "env": "me/Till-v0", "steps": steps}, settings)
        model = str(launch(config, folder / recipe).checkpoints()[-1])
        print(f"after {recipe}: {evaluate('me/Till-v0', model, n=8).overall.success:.2f} of unseen amounts are right")
