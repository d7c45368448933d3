"""Text as people have it, turned into documents: finding files, unpacking, decoding, rows and their fields.

``corpus.py`` is the whole of it; ``finding.py`` decides which files are taken, ``containers.py`` opens what is
compressed or archived, ``encoding.py`` finds how a text is encoded, ``rows.py`` and ``documents.py`` cut documents.
``verse.py`` makes a corpus of regulated verse; ``prosody.py`` measures the form of a poem, ``poem_index.py`` what it has in
common with others.
"""

from __future__ import annotations

from pangu_lab.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "corpus": ["Corpus", "Reading", "Report"],
        "finding": ["Inputs", "find_files"],
        "poem_index": ["BigramModel", "Nearest", "PoemIndex", "read_poems"],
        "prosody": ["Prosody", "lines_of", "prosody_of"],
        "verse": ["make_verse"],
    },
)
