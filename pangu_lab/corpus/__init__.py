"""Text as people have it, turned into documents: finding files, unpacking, decoding, rows and their fields.

``corpus.py`` is the whole of it; ``finding.py`` decides which files are taken, ``containers.py`` opens what is
compressed or archived, ``encoding.py`` finds how a text is encoded, ``rows.py`` and ``documents.py`` cut documents.
"""

from __future__ import annotations

from pangu_lab.corpus.corpus import Corpus, Reading, Report
from pangu_lab.corpus.finding import Inputs, find_files

__all__ = ["Corpus", "Inputs", "Reading", "Report", "find_files"]
