"""Files that users name: read or refused in a sentence, never written over what is read.

Imports `errors` only.
"""
