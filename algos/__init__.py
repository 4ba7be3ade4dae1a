"""Losses, recipes, the learner and the training loop.

Owns `TokenBatch`, `Credit`, `Term` and `Recipe`. One algorithm is one file of pure functions and a RECIPE; the file's
name is the registry. No environment and no sandbox is named here.
"""
