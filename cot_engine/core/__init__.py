"""Values and grammar: problems, stages and plans, chains, requests, events, traces, answers.

Frozen values that everything else is written in, and the tag grammar. Nothing here knows a model.
A file is read only where a value names its own (`Plan.from_toml`, `Trace.read`). Imports `errors`,
`files` and, for types, `images`.
"""
