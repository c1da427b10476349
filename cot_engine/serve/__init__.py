"""The engine behind HTTP: an OpenAI-compatible server, and who may search on it and when.

`desk` decides who searches when and keeps what became of it, and knows no HTTP: `limits` says what
it allows, `turns` whose turn it is, `quota` what a client has spent, `shelf` where finished traces
are. `app` is the HTTP application: `schema` what may be asked, `asked` that as a question with
options, `told` a search as replies, `failures` errors in OpenAI's shape, `guard` what is refused
before anything is read, `metrics`, `keys`; `server` runs it in a process. Imports the engine's
rooms and `show`; only the command line imports it.
"""
