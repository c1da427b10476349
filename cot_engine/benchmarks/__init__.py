"""Readers and scorers of the public benchmarks: their questions, what models answered, and the
rules by which others score that, each named after where it comes from.

A benchmark is an entry of `catalogue`; a set of rules is an entry of `rulesets`, and each rule a
plain function in a file of its own. Imports `questions` (items and our own grading),
`backends` (a model that decides what rules leave open), `statistics`, and below.
"""
