"""Policies, rollouts, scoring and evaluation.

Owns `Policy`, `Completion`, `TokenScores` and `Trajectory`. Here text becomes tokens, once, and stays exact. Nothing
here knows how a teacher is prompted or what a loss is.
"""
