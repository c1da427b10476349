"""The search core: what a strategy may ask, and how it is carried out.

`loop` drives one search; `expand`, `fill` and `select` carry out what a strategy asks, through a
`session` that seeds, reserves and charges. Imports `core`, `judging`, and the protocol of
`backends`.
"""
