"""What a model must be able to do for a search (`protocol`), and what does it.

`local` runs one model in this process, `models` has what differs between families, `scripted` is
made of arithmetic. Imports `core`, `errors` and, for pixels, `images`.
"""
