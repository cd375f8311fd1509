"""Corpora, tokenisers and length buckets: text in, NumPy batches of a few fixed shapes out."""

from .arrays import ArrayBatches, check_arrays, load_arrays
from .batches import Batches
from .buckets import bucket_edges
from .corpora import data_folder
from .corpus import Corpus, load, train_tokeniser
from .errors import BadData
from .images import mnist
from .midi import KEYS, LOWEST, read_roll
from .permutation import Permutation
from .sentences import Sentences
from .sequence_corpora import SequenceCorpus, named_sequences, sequences_from, sequences_in
from .sequences import SequenceBatches, Sequences
from .sound import read_wav
from .spec import BPE, Data, WordPiece, Words
from .stdlib_docs import stdlib_sentences
from .subwords import SubwordTokeniser
from .tokenisers import BOS, EOS, PAD, SPECIAL, UNK, Tokeniser
from .words import WordTokeniser

__all__ = [
    "BOS",
    "BPE",
    "EOS",
    "KEYS",
    "LOWEST",
    "PAD",
    "SPECIAL",
    "UNK",
    "ArrayBatches",
    "BadData",
    "Batches",
    "Corpus",
    "Data",
    "Permutation",
    "Sentences",
    "SequenceBatches",
    "SequenceCorpus",
    "Sequences",
    "SubwordTokeniser",
    "Tokeniser",
    "WordPiece",
    "WordTokeniser",
    "Words",
    "bucket_edges",
    "check_arrays",
    "data_folder",
    "load",
    "load_arrays",
    "mnist",
    "named_sequences",
    "read_roll",
    "read_wav",
    "sequences_from",
    "sequences_in",
    "stdlib_sentences",
    "train_tokeniser",
]
