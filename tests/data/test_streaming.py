"""A corpus larger than memory: what is held does not grow with the file."""

import subprocess
import sys

PROGRAM = """
import sys, tracemalloc
from guidebook.data import Batches, Data, load
load(Data(corpus=sys.argv[2]), cache=sys.argv[3])  # imports and first-time costs
tracemalloc.start()
corpus = load(Data(corpus=sys.argv[1]), cache=sys.argv[3])
batches = Batches(corpus.train, batch_size=32, word_keep=0.5)
for batch in batches.stream(0, 50): pass
print(len(corpus.train), tracemalloc.get_traced_memory()[1])
"""


def peak(path, warm_up, cache):
    """Training sentences of the file, and the most bytes allocated while tokenising and reading batches."""
    command = [sys.executable, "-c", PROGRAM, path, warm_up, str(cache)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return map(int, result.stdout.split())


def test_memory_does_not_grow_with_the_file(write, lines, cache):
    small = lines(20_000, longest=20)
    few, small_peak = peak(write(small, "small.txt"), write(small[:500], "warm.txt"), cache)
    many, large_peak = peak(write(small * 5, "large.txt"), write(small[:500], "warm.txt"), cache)
    assert many == 5 * few
    assert large_peak < 1.25 * small_peak
    assert large_peak < 20e6
