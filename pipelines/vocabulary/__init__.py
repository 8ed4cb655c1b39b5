"""Ids for categorical values, from a vocabulary or by hashing."""

from pipelines.vocabulary.hashing import HashVocabulary, SharedHashVocabulary
from pipelines.vocabulary.vocabularies import Vocabulary, load

__all__ = ["HashVocabulary", "SharedHashVocabulary", "Vocabulary", "load"]
