"""What several codecs make of one state dict; run as a script, it prints the digests that another process compares."""

import hashlib
import json

import numpy as np

import dpcomp as dp

CODECS = {
    "float32": dp.Codec(),
    "uniform": dp.Codec(quantize=dp.Uniform(4)),
    "waterfill packed": dp.Codec(quantize=dp.Uniform(dp.Waterfill(3.5)), entropy=dp.FixedWidth()),
    "dithered": dp.Codec(quantize=dp.Uniform(4, rounding=dp.Dithered())),
    "sign": dp.Codec(quantize=dp.Sign()),
    "ternary": dp.Codec(quantize=dp.Ternary()),
    "rotated": dp.Codec(quantize=dp.Rotated(2)),
    "top": dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4)),
    "top of layers packed": dp.Codec(sparsify=dp.TopK(0.2, per="layer"), entropy=dp.FixedWidth()),
    "random": dp.Codec(sparsify=dp.RandomK(0.3, per="layer"), quantize=dp.Uniform(4, rounding=dp.Stochastic())),
}


def digests():
    """Return a digest of the payload of each codec, and of what is decoded from it."""
    made = {}
    for name, codec in CODECS.items():
        value = {"w": np.random.default_rng(5).standard_normal((70, 90)), "n": np.arange(3)}
        payload = codec.compress(value, number=77)
        decoded = codec.decompress(payload, value)["w"]
        made[name] = [hashlib.sha256(each).hexdigest() for each in (payload, decoded.tobytes())]
    return made


if __name__ == "__main__":
    print(json.dumps(digests()))
