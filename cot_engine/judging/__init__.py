"""Judges and scorers, what is said to a model, and what its folder says of judging with it.

Imports `core` and `plugins`.
"""
