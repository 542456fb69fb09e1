"""Strings of one and two symbols: CompressAI's encoder has too little memory for them, and may end the
process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.files import Codec, decompress

CASES = """
import os
import random
import sys
from compressai import ans
from overlap_tool.models import range_coding

own = {kind: dict(vars(getattr(ans, kind))) for kind in ("RansEncoder", "BufferedRansEncoder")}
chance = random.Random(0)

def call():
    ends = sorted({0, 65536, *(chance.choice([chance.randrange(1, 65536), chance.randrange(1, 9)])
                               for _ in range(chance.randrange(2, 5)))})
    count = chance.choice([1, 1, 2, 2, 3, 4])
    symbols = [chance.randrange(-1, len(ends)) for _ in range(count)]
    return symbols, [0] * count, [ends], [len(ends)], [0]

def apart(work):
    # what a process of its own makes; None if that ends before
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        made = work()
        spoilt = [bytearray(24) for _ in range(1000)]  # memory that was written over is noticed
        os.write(writing, made)
        os._exit(0)
    os.close(writing)
    made = b"".join(iter(lambda: os.read(reading, 4096), b""))
    os.close(reading)
    return made if os.waitpid(child, 0)[1] == 0 else None

def buffered(encode, flush, calls):
    encoder = ans.BufferedRansEncoder()
    for one in calls:
        encode(encoder, *one)
    return flush(encoder)

def at_once(encode, one):
    return encode(ans.RansEncoder(), *one)

range_coding.guard()
kinds = ans.BufferedRansEncoder, own["BufferedRansEncoder"]
ended = 0
for _ in range(int(sys.argv[1])):
    one, more = call(), [call() for _ in range(chance.randrange(3))]
    pairs = [
        (apart(lambda: at_once(own["RansEncoder"]["encode_with_indexes"], one)),
         at_once(ans.RansEncoder.encode_with_indexes, one)),
        (apart(lambda: buffered(kinds[1]["encode_with_indexes"], kinds[1]["flush"], [one, *more])),
         buffered(ans.BufferedRansEncoder.encode_with_indexes, ans.BufferedRansEncoder.flush, [one, *more])),
    ]
    for theirs, ours in pairs:
        ended += theirs is None
        assert theirs in (None, ours), (one, more)
    assert ans.RansDecoder().decode_with_indexes(pairs[0][1], *one[1:]) == one[0]
print(ended)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_strings_of_few_symbols_are_those_of_compressai_where_it_survives() -> None:
    """In calls of any length, in and outside of their tables; and what it does not survive can be decoded."""
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CASES, "150"], check=True, capture_output=True, text=True
    )
    assert 10 < int(made.stdout) < 290, "how often it ended"


OF_ONE_LIST = """
import numpy as np
from compressai import ans
from overlap_tool.models.range_coding import guard

tables = [[0, 100, 30000, 65000, 65536]], [5], [0]
symbols = [0, 1, 2, 1, 0, 2]


def string(call, tables=tables):
    encoder = ans.BufferedRansEncoder()
    for symbol in symbols:
        call(encoder, symbol, tables)
    return encoder.flush()


def another(encoder, symbol, tables):
    encoder.encode_with_indexes([symbol], [0], *tables)


expected, used = string(another), [0]


def again(encoder, symbol, tables):
    used[0] = symbol
    encoder.encode_with_indexes(used, [0], *tables)


guard()
assert string(again) == expected
symbols = symbols[:2]
assert string(another, tuple(map(np.array, tables))) == string(another)
"""


def test_lists_that_a_caller_uses_again_and_arrays_are_coded() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", OF_ONE_LIST], check=True)


ONE_SYMBOL = """
import sys
from overlap_tool.files import Codec, compress
compress(Codec.load(sys.argv[1]), sys.argv[2], sys.argv[3])
"""


def test_an_image_of_one_symbol(tmp_path) -> None:
    """One position and one channel of latents ended the process."""
    sizes = {"N": 2, "M": 1}
    model = overlap_tool.wrap(
        checkpoint.seeded_model(checkpoint.find("bmshj2018-factorized"), sizes), tile=64
    )
    overlap_tool.save(model, tmp_path / "it.tiled.pt", "bmshj2018-factorized", sizes)
    image, made = tmp_path / "in.npy", tmp_path / "it.lic"
    np.save(image, np.full((9, 11, 3), 77, np.uint8))
    how = [sys.executable, "-W", "ignore", "-c", ONE_SYMBOL, tmp_path / "it.tiled.pt", image, made]
    assert subprocess.run(how, capture_output=True).returncode == 0
    codec = Codec.load(tmp_path / "it.tiled.pt")
    decompress(codec, made, tmp_path / "out.npy")
    padded = torch.nn.functional.pad(torch.full((1, 3, 9, 11), 77 / 255), (2, 3, 3, 4))
    with torch.no_grad(), overlap_tool.exact_kernels():
        latents = codec.model.g_a(padded)
        rounded = codec.model.entropy_bottleneck.quantize(
            latents, "dequantize", codec.model.entropy_bottleneck._get_medians()
        )
        expected = codec.model.g_s(rounded).clamp(0, 1)[0, :, 3:12, 2:13]
    assert latents.numel() == 1
    assert np.array_equal(np.load(tmp_path / "out.npy"), (expected * 255).round().permute(1, 2, 0).byte())
