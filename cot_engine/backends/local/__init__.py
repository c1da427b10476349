"""One model in this process, through torch and transformers.

Requests come in at `backend`, wait in `worker`'s thread, and share prefixes by themselves.
"""
