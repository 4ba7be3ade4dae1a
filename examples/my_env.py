"""An environment of your own, whole: count in Esperanto, and hear what you said. Checked, trained on, evaluated.

python examples/my_env.py [FOLDER] [key=value ...]
"""

import sys
from pathlib import Path

from gymnasium import make, register
from retort.agents.evaluate import evaluate
from retort.algos.config import preset, resolve
from retort.algos.launch import launch
from retort.envs.check import check_env
from retort.envs.single import single_turn


def spell(number):
    words = ("", "unu", "du", "tri", "kvar", "kvin", "ses", "sep", "ok", "naŭ")
    digits = zip(map(int, f"{number:03}"), ("cent", "dek", ""), strict=True)
    return " ".join((words[digit] if digit > 1 or not unit else "") + unit for digit, unit in digits if digit)


ASKED = {f"say {number} in Esperanto": number for number in range(1, 1000)}
SAID = {spell(number): number for number in ASKED.values()}


def hear(prompt, answer):
    said = SAID.get(answer.strip(), "no number")
    return float(said == ASKED[prompt]), f"you said {said}"


register("me/Count-v0", single_turn([*ASKED], hear, answers=[*SAID], near_misses=lambda p: [spell(ASKED[p] % 999 + 1)]))

if __name__ == "__main__":
    check_env(make("me/Count-v0"))
    folder, settings, model = Path(*sys.argv[1:2] or ["runs/count"]), sys.argv[2:], "tiny"
    for recipe, own in ("sft", {"steps": 100, "traces": {"tasks": 1000, "skill": 0.4}}), ("srpo", {"steps": 30}):
        config = resolve({**preset(recipe, model), "env": "me/Count-v0", **own}, settings)
        model = str(launch(config, folder / recipe).checkpoints()[-1])
        print(f"{recipe}: {evaluate('me/Count-v0', model, turn_tokens=16).overall.success:.0%} of unseen numbers right")
