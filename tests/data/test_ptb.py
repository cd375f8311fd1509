"""The counts that every published number on the Penn Treebank rests on."""

import pytest

from guidebook.data import UNK, Batches, Data, data_folder, load

pytestmark = pytest.mark.skipif(
    data_folder() is None or not (data_folder() / "ptb").is_dir(),
    reason="the Penn Treebank is not here (GUIDEBOOK_DATA)",
)


def test_sentences_tokens_and_vocabulary(cache):
    corpus = load(Data(corpus="ptb"), cache=cache)
    assert [len(split) for split in (corpus.train, corpus.valid, corpus.test)] == [42_068, 3_370, 3_761]
    assert [split.tokens for split in (corpus.train, corpus.valid, corpus.test)] == [929_589, 73_760, 82_430]
    # 9,999 types in train, of which <unk> is the special token; pad, bos and eos come on top.
    assert corpus.tokeniser.size == 9_998 + 4
    assert corpus.tokeniser.encode("mr. <unk> is chairman")[1] == UNK
    assert max(corpus.train.lengths) == 83
    batches = Batches(corpus.train, batch_size=32)
    assert batches.padding < 0.13
    assert batches.shapes[-1] == 83
