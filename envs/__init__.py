"""The environment contract and the environments.

Owns `Task`, `TaskRef`, `Feedback` and `TextEnv`. One environment is one file. An environment speaks text: it knows
nothing of tokens, models or losses. It may use a sandbox and imports nothing else of this project.
"""
