"""A file of questions answered by one strategy: what is asked, the predictions file that people
open and that a second run goes on from, and how well it went. Imports `engine`, `questions`,
`statistics` and below.
"""
