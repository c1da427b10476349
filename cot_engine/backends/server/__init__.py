"""Models behind OpenAI-compatible servers, asked over HTTP: how a server is reached (`http`), what
it turns out to be able to do (`probe`, `dialect`), what is said to it and what it answers
(`messages`, `written`, `verdicts`), what that cost (`costs`), and the backend made of these.
Imports no torch, but where a model's sizes are known (`sizes`).
"""
