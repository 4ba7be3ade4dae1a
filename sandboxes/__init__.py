"""Isolation: places where an agent's commands run.

Owns `Sandbox`, `Terminal`, `ExecResult` and `Limits`. One backend is one file. Nothing here knows of tasks,
rewards, agents or models, and nothing here imports another folder of this project.
"""
