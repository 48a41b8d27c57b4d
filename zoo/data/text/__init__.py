"""Text: a stream of documents cut into blocks, separate sentences, and pairs of segments."""

from zoo.data.text.blocks import Text
from zoo.data.text.sentence_pairs import SentencePairs
from zoo.data.text.sentences import Sentences

__all__ = ["SentencePairs", "Sentences", "Text"]
