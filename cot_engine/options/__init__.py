"""A call's options: from defaults, a TOML file, the environment, flags or objects to parts, once.

Imports everything that is chosen by name; the engine and whatever users touch import it.
"""
