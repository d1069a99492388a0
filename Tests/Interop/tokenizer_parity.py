"""Compares `jettrain tokens encode` with Hugging Face's `tokenizers` on every line of a folder of text files and on
seeded random strings: invalid UTF-8, decomposed characters, lone marks, emoji sequences, long runs, special tokens.

usage: tokenizer_parity.py JETTRAIN TOKENIZER_FOLDER [TEXT_FOLDER] [--random N] [--seed S]
"""
import argparse
import glob
import json
import random
import subprocess
import sys

from tokenizers import Tokenizer


def without_added_tokens(path):
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    vocabulary = content["model"]["vocab"]
    # What is text of the vocabulary by its makers' word stays a token (Gemma's tags and runs of line feeds).
    content["added_tokens"] = [token for token in content["added_tokens"]
                               if not token["special"] and vocabulary.get(token["content"]) == token["id"]]
    if (content["post_processor"] or {}).get("type") != "ByteLevel":
        content["post_processor"] = None
    return Tokenizer.from_str(json.dumps(content))


def encode(program, folder, records, special):
    command = [program, "tokens", "encode", "--tokenizer", folder, "--null"] + (["--special"] if special else [])
    data = b"".join(record + b"\0" for record in records)
    output = subprocess.run(command, input=data, check=True, capture_output=True).stdout
    return [[int(i) for i in line.split()] for line in output.decode().split("\n")[:-1]]


def compare(what, program, folder, reference, records, special):
    texts = [record.decode("utf-8", errors="replace") for record in records]
    ours = encode(program, folder, records, special)
    assert len(ours) == len(records), f"{len(ours)} records came back, {len(records)} went in"
    bad = 0
    for start in range(0, len(texts), 10000):
        batch = reference.encode_batch_fast(texts[start : start + 10000], add_special_tokens=False)
        for i, encoding in enumerate(batch, start):
            if encoding.ids != ours[i]:
                bad += 1
                if bad <= 5:
                    at = next((k for k, pair in enumerate(zip(encoding.ids, ours[i])) if pair[0] != pair[1]), 0)
                    around = slice(max(0, at - 3), at + 6)
                    print(f"{what}, record {i}, token {at}: tokenizers {encoding.ids[around]} = "
                          f"{ascii(reference.decode(encoding.ids[around]))}, jettrain {ours[i][around]} = "
                          f"{ascii(reference.decode(ours[i][around]))}")
    print(f"{what}: {len(records)} compared, {bad} differ")
    return bad


def random_records(count, seed, special):
    rng = random.Random(seed)
    marks = [chr(c) for c in list(range(0x300, 0x370)) + [0x5B0, 0x64B, 0x93C, 0x9BE, 0xB57, 0x1161, 0x11A8, 0x302B,
                                                          0x3099, 0x309A, 0x20D0, 0xFE20, 0x1D165, 0x200D, 0xFE0F]]
    emoji = ["👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "😶‍🌫️", "1️⃣", "🦙", "❤️"]
    words = ["the", "Don't", "I'LL", "we'Ve", "it'ſ", "naïve", "Å", "한국어", "각", "日本語", "ﬁne", "ΐ", "ǖ",
             "café", "\u212b\u2126\u212a", "नि", "คำ", "x²", "½", "١٢٣", "Ⅷ", "_id", "--", "…", "0x1F", "'s", "''s"]
    spaces = [" ", "  ", "\t", "\n", "\r\n", "\n\n ", "\u00a0", "\u3000", "\u2028", "\u0085", " \n  \n x", "   y"]

    def scalar():
        kind = rng.random()
        if kind < 0.35:
            return chr(rng.randrange(1, 0x80))
        if kind < 0.8:
            limit = 0x3000 if kind < 0.6 else 0x10000
            value = rng.randrange(0x80, limit)
        else:
            value = rng.randrange(0x10000, 0x32000)
        return chr(value) if not 0xD800 <= value < 0xE000 else "?"

    def part():
        kind = rng.randrange(10)
        if kind == 0:
            return scalar().encode()
        if kind == 1:
            return "".join(scalar() for _ in range(rng.randrange(1, 12))).encode()
        if kind == 2:
            return (rng.choice("aeouAn가") + "".join(rng.choice(marks) for _ in range(rng.randrange(1, 5)))).encode()
        if kind == 3:
            return rng.choice(marks).encode()
        if kind == 4:
            return rng.choice(emoji).encode()
        if kind == 5:
            return rng.choice(spaces).encode() * rng.randrange(1, 4)
        if kind == 6:
            return (rng.choice(["a", " ", "=", "\n", "é", "9", "ह", "🙂", "\u0301"]) * rng.randrange(1, 200)).encode()
        if kind == 7:
            return bytes(rng.randrange(1, 256) for _ in range(rng.randrange(1, 6)))
        if kind == 8:
            return rng.choice(special).encode()
        return rng.choice(words).encode()

    for _ in range(count):
        yield b"".join(part() for _ in range(rng.randrange(0, 9)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("jettrain")
    parser.add_argument("tokenizer")
    parser.add_argument("texts", nargs="?")
    parser.add_argument("--random", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    path = options.tokenizer + "/tokenizer.json"
    recognizing, plain = Tokenizer.from_file(path), without_added_tokens(path)
    with open(path, encoding="utf-8") as file:
        special = [token["content"] for token in json.load(file)["added_tokens"]]
    bad = 0
    if options.texts:
        lines = []
        for name in sorted(glob.glob(options.texts + "/*")):
            with open(name, "rb") as file:
                lines += [line for line in file.read().split(b"\n") if b"\0" not in line]
        bad += compare("corpora, special tokens as text", options.jettrain, options.tokenizer, plain, lines, False)
        bad += compare("corpora, special tokens recognized", options.jettrain, options.tokenizer, recognizing, lines, True)
    records = list(random_records(options.random, options.seed, special))
    bad += compare("random, special tokens as text", options.jettrain, options.tokenizer, plain, records, False)
    bad += compare("random, special tokens recognized", options.jettrain, options.tokenizer, recognizing, records, True)
    sys.exit(1 if bad else 0)


main()
