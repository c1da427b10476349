"""Verifiers: what gives a candidate a number, or a pair a verdict, by asking a model that need not
be the one that searches. A file a kind of score: `tokens`, `heads`, `texts`.

A pointwise one is a Scorer, a pairwise one a Judge. `words` turns candidates into dialogues,
`scale` numbers into what they stand for, `files` TOML and names into verifiers; `recipes/` has
those that ship. Imports what `judging` imports.
"""
