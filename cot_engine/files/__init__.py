"""Files that users name: read or refused in a sentence, written whole, held by one process at a
time, never written over what is read. Imports `errors` only.
"""
