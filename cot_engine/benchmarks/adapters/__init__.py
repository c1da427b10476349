"""The engine as a model inside other people's evaluation harnesses: a file a harness, on the public
names alone; `respondent` is what they share. Each file imports its harness, so nothing here is
imported by the package itself: the harness does it, by an entry point where it has some.
"""
