"""The other side of benchmarks/single_turn.py: GEM's wrapper of reasoning-gym, in a virtual environment of its own.

Reads what to do as JSON on standard input and answers with JSON: by generator, CPU seconds for all questions.
"""

import json
import os
import sys
import time

from gem.envs.reasoning_gym import ReasoningGymEnv

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
asked = json.load(sys.stdin)
IN_METADATA = {
    "graph_color": "possible_answer",
    "rubiks_cube": "example_correct_answer",
}


def reference(name, entry):
    given = entry["metadata"][IN_METADATA[name]] if name in IN_METADATA else entry["answer"]
    return given if isinstance(given, str) else json.dumps(given)


def once(name):
    """CPU seconds: the verifier alone, the wrapper's step, and the wrapper's whole, questions included."""
    count = asked["questions"]
    start = time.process_time()
    env = ReasoningGymEnv(name, size=count, seed=0)
    made = time.process_time() - start
    steps = verifier = resets = 0.0
    for _ in range(count):
        start = time.process_time()
        env.reset()
        resets += time.process_time() - start
        answer = reference(name, env.data)
        action = f"\\boxed{{{answer}}}"
        start = time.process_time()
        env.step(action)
        steps += time.process_time() - start
        start = time.process_time()
        env.reward_fn(answer=answer, entry=env.data)
        verifier += time.process_time() - start
    return {"verifier": verifier, "step": steps, "whole": made + resets + steps}


found = {}
for name in asked["generators"]:
    rounds = [once(name) for _ in range(asked["repeats"])]
    found[name] = {way: min(one[way] for one in rounds) for way in rounds[0]}
json.dump(found, answers)
answers.close()
