"""PanGu-α lab: the whole life of a PanGu-α language model in MindSpore, from text to a served page.

Importing this package is quick: MindSpore, Gradio and the like are imported where they are used.
"""

__version__ = "0.1.0"
