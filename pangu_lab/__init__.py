"""PanGu-α lab: the whole life of a PanGu-α language model in MindSpore, from text to a served page.

Importing this package is quick: MindSpore, Gradio and the like are imported where they are used.
"""

import os

__version__ = "0.1.0"

# MindSpore's log level is read once, when it is first imported; its warnings would drown the program's own words.
os.environ.setdefault("GLOG_v", "3")
