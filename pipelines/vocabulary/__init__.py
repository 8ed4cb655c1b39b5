"""Numbering of categorical values, by a vocabulary or by a hash."""

from pipelines.vocabulary.hashing import HashVocabulary, SharedHashVocabulary
from pipelines.vocabulary.vocabularies import Vocabulary, load

__all__ = ["HashVocabulary", "SharedHashVocabulary", "Vocabulary", "load"]
