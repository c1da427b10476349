"""A call's options: from defaults, a TOML file, the environment, flags or objects to parts, once.

`config` is the value, `layers` says where it comes from, `resolve` makes parts of it, `problem`
does as much for image and question. Imports everything that is chosen by name; the engine and
whatever users touch import it.
"""
