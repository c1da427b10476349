"""Images from any source to safe RGB pixels; downloads, if they are allowed.

Imports `errors` only.
"""
