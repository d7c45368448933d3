"""The network: ``pangu.py`` is all of it, ``parameters.py`` lists every parameter by its published name."""
