"""How categorical values are numbered: by a vocabulary, or by a hash."""

from pipelines.vocabulary.vocabularies import HashVocabulary, Vocabulary, load

__all__ = ["HashVocabulary", "Vocabulary", "load"]
