"""The facade: a model loaded once, questions answered, and the thread in which that happens.

`facade` has the calls, `thread` the event loop that the engine owns, `feed` the order of many
problems, `modes` whether a model opens the stages itself. Imports everything below it.
"""
