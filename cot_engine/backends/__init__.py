"""What a model must be able to do for a search (`protocol`), and what does it.

`opening` finds the backend for a model. `local` runs one model in this process, `models` has a file
for each family, `server` asks one over HTTP, `scripted` is made of arithmetic. Imports `core`,
`errors`, `plugins` and, for pixels, `images`.
"""
