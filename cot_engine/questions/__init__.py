"""Questions with their standard answers: read from files row by row, checked, graded by rules. What
compares strategies, trains on them or answers them reads them here. Imports `core`, `options` (what
a question may be), `scenes` and below; knows no engine.
"""
